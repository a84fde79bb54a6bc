#!/usr/bin/env bash
# Installs what the tests need, builds everything and runs every test but those of tests/faults.sh.
# Arguments go to `cargo test`, such as: ./tests/run.sh -p tidegate-worker sink
#
# The tests start RabbitMQ, PostgreSQL and Tidegate themselves, on free ports, in temporary folders; a broker or
# database that runs here already is not touched, and the script may run several times at once.
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/lib/setup.sh

ensure_rust
ensure compiler rabbitmq postgresql python sqlite curl

profile=()
for argument in "$@"; do
  [ "$argument" != --release ] || profile=(--release)
done

# One build for both: the programs that the system tests start, and the tests.
say "building Tidegate and its tests …"
cargo build --workspace --bins --tests "${profile[@]}"
say "testing …"
cargo test --workspace --no-fail-fast "$@"
