# Docker's engine for tests/containers.sh: the one that runs, or one of its own for as long as the script runs.
# Sourced; nothing here runs by itself.

answers() { docker info --format '{{.ServerVersion}}' >/dev/null 2>&1; }

# ensure_engine FOLDER: an engine answers, or the script ends and says what to do. Its log goes into the folder.
ensure_engine() {
  local log=$1/dockerd.log deadline
  if command -v docker >/dev/null && answers; then
    return
  fi
  if [ "$(id -u)" -ne 0 ]; then
    fail "no container engine answers: install Docker and start it, and let this user ask it (docker info has to work);" \
      "as root this script does it by itself"
  fi
  ensure dockerd
  say "starting Docker's engine …"
  setsid dockerd >"$log" 2>&1 </dev/null &
  engine=$!
  deadline=$((SECONDS + 60))
  until answers; do
    kill -0 "$engine" 2>/dev/null ||
      { tail -n 5 "$log" >&2; fail "Docker's engine does not start on this machine"; }
    [ $SECONDS -lt $deadline ] ||
      { tail -n 5 "$log" >&2; fail "Docker's engine does not answer after 60 s"; }
    sleep 0.2
  done
}

stop_engine() {
  [ -n "${engine-}" ] || return 0
  kill "$engine" 2>/dev/null && wait "$engine" 2>/dev/null || true
}

# remove_leftovers LABEL: what tests that were killed could not remove.
remove_leftovers() {
  docker ps --all --quiet --filter "label=$1" | xargs --no-run-if-empty docker rm --force --volumes >/dev/null
  docker network ls --quiet --filter "label=$1" | xargs --no-run-if-empty docker network rm >/dev/null
  docker volume ls --quiet --filter "label=$1" | xargs --no-run-if-empty docker volume rm >/dev/null
}
