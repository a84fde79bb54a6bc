#!/usr/bin/env bash
# Measures. Prints one JSON line a figure to stdout, everything else to stderr.
# usage: tests/bench.sh [FIGURE ...]     (default: all)
#
# Where there is a reference, both are measured in turns in the same run, because a machine's speed drifts; the
# ratio is what counts.
#   end_to_end           batches/s from submission to all settled, ledger in SQLite; against bare lapin
#   end_to_end_postgres  the same, ledger in PostgreSQL
#   submit               batches/s of one NDJSON submission into the ledger, over the HTTP API, SQLite and
#                        PostgreSQL; against the same payloads written into one table
#   latency              p50 and p99 of request to handler start in ms, at 100 runs of one batch a second; against
#                        bare lapin, publish to delivery
#   slice_path           rows/s of the main job's slices into PostgreSQL; against the bare steps
#   limit_use            share of a quota that fleets of workers use, and share of their calls that is refused
#   exec_lines           batches/s of a long-lived Python process; against the same program reading a file
#   copy_path            rows/s of a command into a typed PostgreSQL table; against psql's COPY of the same rows
#   io_bound             batches/s of one 100 ms call each, 100 at once; against the ideal, with the worker's memory
#   worker_cpu           CPU of a batch that does nothing; against a bare lapin consumer's, with the worker's idle memory
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/lib/setup.sh

# measure PROGRAM [ARGUMENT ...]: one of tests/bench, with the real coordinator and worker beside it.
measure() {
  cargo build --release -p tidegate-coordinator -p tidegate-worker -p tidegate-bench >&2
  target/release/"$@"
}

end_to_end() {
  ensure rabbitmq
  measure end_to_end
}

end_to_end_postgres() {
  ensure rabbitmq postgresql
  measure end_to_end --ledger postgres
}

submit() {
  ensure rabbitmq postgresql
  measure submit
}

latency() {
  ensure rabbitmq
  measure latency
}

slice_path() {
  ensure postgresql
  cargo build --release -p tidegate-harness >&2
  cargo bench --no-run -p tidegate-worker --bench slice_path >&2
  local answers=$work/services
  target/release/test-services --no-rabbitmq --postgres >"$answers" &
  services=$!
  until grep -q '^ready' "$answers"; do
    kill -0 $services 2>/dev/null || fail "PostgreSQL did not start"
    sleep 0.2
  done
  TIDEGATE_BENCH_POSTGRES=$(sed -n 's/^POSTGRES_URL=//p' "$answers") \
    cargo bench --quiet -p tidegate-worker --bench slice_path
  kill $services
}

limit_use() {
  ensure rabbitmq postgresql
  cargo build --release -p search-console-emulator >&2
  measure limit_use
}

exec_lines() {
  ensure rabbitmq python
  measure exec_lines
}

copy_path() {
  ensure rabbitmq postgresql
  measure copy_path
}

io_bound() {
  ensure rabbitmq
  measure io_bound
}

worker_cpu() {
  ensure rabbitmq
  measure worker_cpu
}

figures="end_to_end end_to_end_postgres submit latency slice_path limit_use exec_lines copy_path io_bound worker_cpu"
# Names without spaces.
# shellcheck disable=SC2086
[ $# -gt 0 ] || set -- $figures
for figure in "$@"; do
  [[ " $figures " == *" $figure "* ]] || fail "there is no figure $figure: use one of $figures"
done

ensure_rust
ensure compiler
services=
work=$(mktemp -d)
trap 'rm -rf "$work"; [ -z "$services" ] || kill $services 2>/dev/null || true' EXIT
for figure in "$@"; do
  say "measuring $figure …"
  $figure
done
