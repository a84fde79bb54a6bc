#!/usr/bin/env bash
# Prints the Secrets that Tidegate's objects refer to, with new random passwords and tokens:
#
#   deploy/kubernetes/secrets.sh | kubectl create -n tidegate -f -
#
# Run it once: the passwords are in RabbitMQ and PostgreSQL after that. `create` refuses to replace what is there.
# Where the database is (default: the trial's own): LEDGER_URL and SINK_URL, postgres://user:password@host/database.
# Google's key file for the Search Console job: SEARCH_CONSOLE_KEY.
set -euo pipefail

random() { head -c 24 /dev/urandom | od -An -vtx1 | tr -d ' \n'; }

# secret NAME KEY=VALUE...: values are Base64, so that nothing in them can change the YAML.
secret() {
  printf -- '---\napiVersion: v1\nkind: Secret\ntype: Opaque\nmetadata:\n  name: %s\n  labels:\n' "$1"
  # The topology operator reads no others.
  [[ $1 != tidegate-rabbitmq-* ]] || printf '    rabbitmq.com/topology-operator: "true"\n'
  printf '    app.kubernetes.io/part-of: tidegate\ndata:\n'
  shift
  local entry
  for entry in "$@"; do
    printf '  %s: %s\n' "${entry%%=*}" "$(printf %s "${entry#*=}" | base64 | tr -d '\n')"
  done
}

declare -A password
for role in topology coordinator worker monitor; do password[$role]=$(random); done
postgres=$(random)
trial=postgres://tidegate:$postgres@postgres/tidegate

broker_url() { echo "amqp://tidegate-$1:${password[$1]}@rabbitmq:5672/tidegate"; }

secret tidegate-topology broker-url="$(broker_url topology)"
secret tidegate-coordinator broker-url="$(broker_url coordinator)" ledger-url="${LEDGER_URL:-$trial}"
secret tidegate-worker broker-url="$(broker_url worker)" sink-url="${SINK_URL:-$trial}"
secret tidegate-api-tokens operate="$(random)" read="$(random)"
secret tidegate-postgres password="$postgres"

# The same passwords for the broker: for definitions, and for the topology operator.
users=()
for role in topology coordinator worker monitor; do
  users+=("tidegate-$role=${password[$role]}")
  secret "tidegate-rabbitmq-$role" username="tidegate-$role" password="${password[$role]}"
done
secret tidegate-rabbitmq-users "${users[@]}"

[ -z "${SEARCH_CONSOLE_KEY-}" ] || secret tidegate-search-console key.json="$(cat "$SEARCH_CONSOLE_KEY")"
