#!/usr/bin/env bash
# Runs the system tests on the RabbitMQ of another Debian suite, which it installs in a folder of its own; as root.
# usage: tests/rabbitmq.sh SUITE [ARGUMENT ...]     (trixie: 4.0; sid: newer; arguments go to the test program)
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/lib/setup.sh

suite=${1:-}
[ -n "$suite" ] || fail "usage: tests/rabbitmq.sh SUITE [ARGUMENT ...], such as: tests/rabbitmq.sh trixie suspects"
shift
[ "$(id -u)" -eq 0 ] || fail "only root can install and enter another Debian: sudo tests/rabbitmq.sh $suite"
ensure_rust
ensure compiler rabbitmq postgresql python sqlite curl debootstrap

root=${TIDEGATE_TEST_ROOTS:-/var/cache/tidegate-tests}/$suite
if [ ! -x "$root/usr/lib/rabbitmq/bin/rabbitmq-server" ]; then
  say "installing RabbitMQ of Debian $suite in $root …"
  rm -rf "$root"
  mkdir -p "$root"
  debootstrap --include=rabbitmq-server "$suite" "$root" >&2
fi

# The node sees the folders of the tests under their own names. The mounts belong to this script's mount namespace
# and end with it.
if [ -z "${TIDEGATE_TEST_INSIDE:-}" ]; then
  TIDEGATE_TEST_INSIDE=1 exec unshare --mount tests/rabbitmq.sh "$suite" "$@"
fi
temporary=${TMPDIR:-/tmp}
mkdir -p "$root$temporary"
mount --bind "$temporary" "$root$temporary"
mount --bind /proc "$root/proc"
mount --bind /dev "$root/dev"

scripts=$(mktemp -d)
trap 'rm -r "$scripts"' EXIT
for program in rabbitmq-server rabbitmqctl; do
  printf '#!/bin/sh\nexec chroot %q /usr/lib/rabbitmq/bin/%s "$@"\n' "$root" $program >"$scripts/$program"
  chmod +x "$scripts/$program"
done
export TIDEGATE_TEST_RABBITMQ_SCRIPTS=$scripts

say "building Tidegate and its tests …"
cargo build --workspace --bins --tests
say "testing on RabbitMQ $(chroot "$root" dpkg-query -f '${Version}' -W rabbitmq-server) …"
cargo test -p tidegate-stack-tests --test it -- "$@"
