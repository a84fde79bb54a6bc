#!/usr/bin/env bash
# Measures. Prints one JSON line a figure to stdout, everything else to stderr.
# usage: tests/bench.sh [FIGURE ...]     figures: end_to_end slice_path limit_use exec_lines copy_path io_bound worker_cpu     (default: all)
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/lib/setup.sh

end_to_end() {
  ensure rabbitmq
  cargo build --release -p tidegate-coordinator -p tidegate-worker -p tidegate-bench >&2
  cargo run --release --quiet -p tidegate-bench --bin end_to_end
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
  cargo build --release -p tidegate-coordinator -p tidegate-worker -p search-console-emulator -p tidegate-bench >&2
  cargo run --release --quiet -p tidegate-bench --bin limit_use
}

exec_lines() {
  ensure rabbitmq python
  cargo build --release -p tidegate-coordinator -p tidegate-worker -p tidegate-bench >&2
  cargo run --release --quiet -p tidegate-bench --bin exec_lines
}

copy_path() {
  ensure rabbitmq postgresql
  cargo build --release -p tidegate-coordinator -p tidegate-worker -p tidegate-bench >&2
  cargo run --release --quiet -p tidegate-bench --bin copy_path
}

io_bound() {
  ensure rabbitmq
  cargo build --release -p tidegate-coordinator -p tidegate-worker -p tidegate-bench >&2
  cargo run --release --quiet -p tidegate-bench --bin io_bound
}

worker_cpu() {
  ensure rabbitmq
  cargo build --release -p tidegate-coordinator -p tidegate-worker -p tidegate-bench >&2
  cargo run --release --quiet -p tidegate-bench --bin worker_cpu
}

figures="end_to_end slice_path limit_use exec_lines copy_path io_bound worker_cpu"
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
