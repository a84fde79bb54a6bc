#!/usr/bin/env bash
# Makes what compose mounts as secrets: passwords, tokens, and the configuration that holds them. What is there is
# kept, but for the configuration, which is written anew.
#
#   deploy/compose/secrets.sh [--demo] [FOLDER]     # default: deploy/compose/secrets
#
# With --demo workers sync from the emulator of the profile demo instead of from Google.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
configuration=("$here/tidegate.toml")
if [ "${1-}" = --demo ]; then
  configuration+=("$here/demo.toml")
  shift
fi
folder=${1:-$here/secrets}

# The folder is closed to others; the files are open to the users that containers run as.
mkdir -p -m 700 "$folder"
umask 0333

random() { head -c 24 /dev/urandom | od -An -vtx1 | tr -d ' \n'; }

for name in tidegate-{topology,coordinator,worker,monitor} postgres-password api-token api-read-token grafana-password; do
  [ -s "$folder/$name" ] || random >"$folder/$name"
done

broker() { echo "amqp://$1:$(<"$folder/$1")@rabbitmq:5672/tidegate"; }
database="postgres://tidegate:$(<"$folder/postgres-password")@postgres/tidegate"

rm -f "$folder/coordinator.toml" "$folder/worker.toml"
cat >"$folder/coordinator.toml" <<TOML
[broker]
url = "$(broker tidegate-coordinator)"
topology = "check"

[ledger]
url = "$database"

[api]
listen = "0.0.0.0:8420"
token_file = "/run/secrets/api-token"

[[api.tokens]]
role = "read"
file = "/run/secrets/api-read-token"

$(cat "${configuration[@]}")
TOML
cat >"$folder/worker.toml" <<TOML
[broker]
url = "$(broker tidegate-worker)"

[sink]
url = "$database"

$(cat "${configuration[@]}")
TOML
