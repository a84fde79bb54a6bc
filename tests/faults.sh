#!/usr/bin/env bash
# The slow system tests: large runs, long outages. Arguments go to the test program, such as a test's name.
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/lib/setup.sh

ensure_rust
ensure compiler rabbitmq postgresql python sqlite curl

# Measured numbers, such as memory, are those of what is shipped.
say "building Tidegate and its tests, optimised …"
cargo build --release --workspace --bins
cargo test --release -p tidegate-stack-tests --test faults -- --nocapture "$@"
