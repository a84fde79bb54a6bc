#!/usr/bin/env bash
# Fuzzes what Tidegate reads from outside: submissions, work messages, outcomes, presence, questions and answers.
# usage: tests/fuzz.sh [TARGET ...] [SECONDS]
#   targets: submission work outcomes fleet ask     (default: all, 60 s each)
#
# libFuzzer changes real inputs, guided by the code that they reach. A target ends at the first input for which
# something is not true, and says where it is kept. At the end, both ledgers store what was found.
#
# There is no sanitizer, so the stable compiler will do: Tidegate has no unsafe code for one to look at. Overflow
# and debug assertions are checked. Inputs are kept in target/fuzz, where the next time goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/lib/setup.sh

all=(submission work outcomes fleet ask)
seconds=60
targets=()
for argument in "$@"; do
  if [[ $argument =~ ^[1-9][0-9]*$ ]]; then
    seconds=$argument
  elif [[ " ${all[*]} " == *" $argument "* ]]; then
    targets+=("$argument")
  else
    fail "there is no target $argument: use some of ${all[*]}, and a number of seconds"
  fi
done
[ ${#targets[@]} -gt 0 ] || targets=("${all[@]}")

ensure_rust
ensure compiler c++ postgresql
if ! command -v cargo-fuzz >/dev/null; then
  say "installing cargo-fuzz …"
  cargo install --locked cargo-fuzz --version '~0.13' ||
    fail "cargo-fuzz cannot be installed here; without it, \`cargo test -p tidegate-fuzz\` tries inputs near the real ones"
fi

folder=$PWD/target/fuzz
cargo run --quiet -p tidegate-fuzz --features seeds --bin seeds -- "$folder/seeds"
for target in "${targets[@]}"; do
  say "fuzzing $target for $seconds s …"
  mkdir -p "$folder/corpus/$target"
  # The name of a file that was put there says what it is: crash-…, timeout-…, oom-…
  cargo fuzz run --fuzz-dir tests/fuzz --sanitizer none --features libfuzzer "$target" \
    "$folder/corpus/$target" "$folder/seeds/$target" -- \
    -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 -artifact_prefix="$folder/$target-"
done

say "storing what was found …"
TIDEGATE_FUZZ_CORPUS=$folder/corpus cargo test --quiet -p tidegate-fuzz
say "nothing was found that is not true"
