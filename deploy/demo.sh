#!/usr/bin/env bash
# Shows Tidegate's main job from end to end, on this machine alone: RabbitMQ, a coordinator, workers and an
# emulator of Google Search Console; one worker is killed midway; at the end every slice is compared with the truth.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: deploy/demo.sh [--days N] [--workers N] [--postgres] [--keep]
       GOOGLE_APPLICATION_CREDENTIALS=key.json deploy/demo.sh --property P [--property P …] [--days N] …

  --days N       how many days to sync (60)
  --workers N    how many workers (3)
  --postgres     store the rows in PostgreSQL instead of a SQLite file
  --keep         leave everything running at the end, with the RabbitMQ UI
  --property P   sync this property from Google itself, with your credentials, instead of the emulator

TIDEGATE_BROKER__URL=amqp://… uses a RabbitMQ that is running; otherwise the demo starts its own.
TEXT
}

cd "$(dirname "$0")/.."
. deploy/lib/setup.sh
. deploy/demo/steps.sh

days=60 workers=3 postgres= keep= properties=()
while [ $# -gt 0 ]; do
  case $1 in
    --days | --workers) [[ ${2-} =~ ^[1-9][0-9]*$ ]] || fail "$1 needs a number"; printf -v "${1#--}" %s "$2"; shift ;;
    --postgres | --keep) printf -v "${1#--}" yes ;;
    --property) [ -n "${2-}" ] || fail "--property needs a property"; properties+=("$2"); shift ;;
    -h | --help) usage; exit ;;
    *) usage >&2; exit 2 ;;
  esac
  shift
done

emulated=yes
if [ ${#properties[@]} -gt 0 ]; then
  emulated=
  [ -f "${GOOGLE_APPLICATION_CREDENTIALS-}" ] ||
    fail "--property syncs from Google: set GOOGLE_APPLICATION_CREDENTIALS to a key file that may read the property"
else
  mapfile -t properties < <(sed -n 's/^url = "\(.*\)"/\1/p' deploy/demo/emulator.toml)
fi

prepare
start_services
[ -z "$emulated" ] || start_emulator
start_tidegate
sync_and_kill_a_worker
show_result
