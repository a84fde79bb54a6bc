# The steps of deploy/demo.sh, in order. Sourced by it.

step() { say "" "==> $*"; }

# In one place: a new demo starts from nothing, a real sync goes on where the last one ended.
prepare() {
  step "setting up"
  ensure_rust
  ensure compiler curl
  [ -n "${TIDEGATE_BROKER__URL-}" ] || ensure rabbitmq
  [ -z "$postgres" ] || ensure postgresql
  say "building Tidegate, optimised (several minutes the first time) …"
  cargo build --release --bins --quiet \
    -p tidegate-coordinator -p tidegate-worker -p search-console-emulator -p tidegate-harness
  PATH=$PWD/target/release:$PATH

  folder=$PWD/.tidegate/demo
  [ -n "$emulated" ] || folder=$PWD/.tidegate/search-console
  mkdir -p "$folder"
  exec 9>"$folder.lock"
  flock -n 9 || fail "another demo is running; one that was kept is stopped with: kill \$(cat $folder/pids)"
  [ -z "$emulated" ] || rm -rf "$folder"
  mkdir -p "$folder"
  : >"$folder/pids"
  trap clean_up EXIT
  cd "$folder" # where no tidegate.toml of somebody's changes what is shown
}

# run NAME COMMAND...: starts it in the background, in a session of its own so that it can outlive the terminal.
run() {
  local name=$1
  shift
  setsid "$@" >"$folder/$name.log" 2>&1 </dev/null &
  pid=$!
  echo $pid >>"$folder/pids"
}

# await WHAT LOG COMMAND...: until the command succeeds; the process that it waits for is the last one started.
await() {
  local what=$1 log=$folder/$2.log deadline=$((SECONDS + 90))
  shift 2
  until "$@" >/dev/null 2>&1; do
    kill -0 "$pid" 2>/dev/null || { tail -n 20 "$log" >&2; fail "$what ended; its log is $log"; }
    [ $SECONDS -lt $deadline ] || fail "$what is not ready after 90 s; its log is $log"
    sleep 0.1
  done
}

start_services() {
  local options=()
  if [ -n "${TIDEGATE_BROKER__URL-}" ]; then
    options+=(--no-rabbitmq)
    say "RabbitMQ: the one at TIDEGATE_BROKER__URL"
  else
    options+=(--management 15672)
  fi
  [ -z "$postgres" ] || options+=(--postgres)
  [ "${options[*]}" != --no-rabbitmq ] || return 0
  step "starting RabbitMQ${postgres:+ and PostgreSQL}"
  run services test-services "${options[@]}"
  await "starting the services" services grep -q '^ready' "$folder/services.log"
  ui=$(sed -n 's/^RABBITMQ_UI=//p' "$folder/services.log")
  broker=$(sed -n 's/^TIDEGATE_BROKER__URL=//p' "$folder/services.log")
  export TIDEGATE_BROKER__URL=${broker:-$TIDEGATE_BROKER__URL}
  [ -z "$ui" ] || say "RabbitMQ UI: $ui (guest, guest)"
}

start_emulator() {
  step "starting the emulator of Google Search Console"
  local config=$folder/../../deploy/demo/emulator.toml
  run emulator search-console-emulator --config "$config" --listen 127.0.0.1:0 \
    --write-credentials "$folder/service-account.json"
  await "the emulator" emulator grep -q '^listening on' "$folder/emulator.log"
  emulator=$(sed -n 's/^listening on //p' "$folder/emulator.log")
  export TIDEGATE_SEARCH_CONSOLE__ENDPOINT=$emulator
  export TIDEGATE_SEARCH_CONSOLE__CREDENTIALS=$folder/service-account.json
  TIDEGATE_SEARCH_CONSOLE__NOW=$(sed -n 's/^now = "\(.*\)"/\1/p' "$config")
  # The emulator has no quotas, so nothing needs to be held back.
  local limits='{"gsc.site"={rate="500/s",start="500/s"},"gsc.user"={rate="2000/s"},"gsc.project"={rate="2000/s"}}'
  export TIDEGATE_SEARCH_CONSOLE__NOW TIDEGATE_LIMITS=$limits
  say "${#properties[@]} properties at $emulator; 2 % of its answers go wrong on purpose"
}

start_tidegate() {
  step "starting a coordinator and $workers workers"
  export TIDEGATE_DATA_DIR=$folder TIDEGATE_LOG=${TIDEGATE_LOG:-info}
  [ -n "$emulated" ] || export TIDEGATE_SEARCH_CONSOLE__CREDENTIALS=$GOOGLE_APPLICATION_CREDENTIALS
  sink=${TIDEGATE_SINK__URL:-sqlite://$folder/results.db}
  [ -z "$postgres" ] || sink=$(sed -n 's/^POSTGRES_URL=//p' "$folder/services.log")
  export TIDEGATE_SINK__URL=$sink TIDEGATE_API__LISTEN=${TIDEGATE_API__LISTEN:-127.0.0.1:8420}
  export TIDEGATE_URL=http://$TIDEGATE_API__LISTEN
  run coordinator coordinator
  await "the coordinator" coordinator curl -fsS --noproxy '*' "$TIDEGATE_URL/readyz"
  worker_pids=()
  for number in $(seq "$workers"); do
    run "worker-$number" worker
    worker_pids+=("$pid")
  done
  await "worker-$workers" "worker-$workers" eval '[ "$(tidegate worker list --json | wc -l)" -ge "$workers" ]'
}

# Reads a number out of the newest run, such as "completed"; nothing while there is no run yet.
of_run() { tidegate run list --limit 1 --json 2>/dev/null | sed -n "s/.*\"$1\":\([0-9]*\).*/\1/p" || true; }

sync_and_kill_a_worker() {
  step "syncing $days days of ${#properties[@]} properties"
  local options=()
  for property in "${properties[@]}"; do options+=(--property "$property"); done
  say "tidegate sync search-console ${options[*]} --days $days --watch"
  tidegate sync search-console "${options[@]}" --days "$days" --watch --json >"$folder/run.json" &
  watching=$!
  local completed accepted
  while [ -n "$emulated" ] && [ "$workers" -gt 1 ] && kill -0 $watching 2>/dev/null; do
    completed=$(of_run completed) accepted=$(of_run accepted)
    if [ "${accepted:-0}" -gt 100 ] && [ $((${completed:-0} * 5)) -gt $((accepted * 2)) ]; then
      kill_a_worker
      break
    fi
    sleep 0.2
  done
  synced=0
  wait $watching || synced=$?
  watching=
}

kill_a_worker() {
  kill -9 "${worker_pids[0]}"
  wait "${worker_pids[0]}" 2>/dev/null || true # otherwise the shell reports it, too
  sed -i "/^${worker_pids[0]}\$/d" "$folder/pids"
  killed=yes
  say "" "*** killed worker-1 (process ${worker_pids[0]}) with SIGKILL, in the middle of its work" ""
}

show_result() {
  step "result"
  say "the run: $(cat "$folder/run.json")"
  [ -z "${killed-}" ] || show_redelivery
  local options=(--sink "$sink" --days "$days") wrong=0
  for property in "${properties[@]}"; do options+=(--property "$property"); done
  [ -z "$emulated" ] || options+=(--emulator "$emulator")
  check-truth "${options[@]}" || wrong=$?
  say "" "the rows are in $sink"
  show_query
  [ "$synced" -eq 0 ] || fail "the sync ended with exit code $synced; see: tidegate dead list"
  [ $wrong -eq 0 ] || fail "the database is not what it ought to be"
  [ -z "$emulated" ] || say "every slice equals what the emulator serves"
}

show_redelivery() {
  local count
  count=$(curl -fsS --noproxy '*' "$TIDEGATE_URL/metrics" |
    sed -n 's/^tidegate_redelivered_outcomes_total\({.*}\)\? //p' | head -n 1)
  say "redelivered after the kill: ${count:-0} batches that worker-1 held were finished by other workers"
  for number in $(seq 2 "$workers"); do
    say "  worker-$number took over $(grep -c "took over a batch" "$folder/worker-$number.log" || true)"
  done
  say ""
}

show_query() {
  local query="select site_url, sum(clicks), sum(impressions) from search_analytics_date group by site_url"
  case $sink in
    sqlite://*) say "a query to try: sqlite3 ${sink#sqlite://} '$query'" ;;
    *) [ -z "$keep" ] && say "(which stops with the demo; --keep leaves it up)" || say "a query to try: psql $sink -c '$query'" ;;
  esac
}

clean_up() {
  local code=$?
  trap - EXIT
  if [ -n "$keep" ] && [ $code -eq 0 ]; then
    say "" "still running: API $TIDEGATE_URL${ui:+, RabbitMQ UI $ui (guest, guest)}; logs in $folder"
    say "to stop it: kill \$(cat $folder/pids)"
    return
  fi
  [ -z "${watching-}" ] || kill "$watching" 2>/dev/null || true
  # Tidegate first, so that it does not mourn its broker.
  local pids
  pids=$(tac "$folder/pids" 2>/dev/null) || true
  for pid in $pids; do kill "$pid" 2>/dev/null || true; done
  for pid in $pids; do wait "$pid" 2>/dev/null || true; done
  [ $code -eq 0 ] || say "logs: $folder"
  exit $code
}
