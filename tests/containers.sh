#!/usr/bin/env bash
# Builds the images as deploy/Dockerfile says and tests them in containers: what is in them, and the main job through
# kills, pauses, cut links, restarts, scaling, an upgrade, and the loss of a RabbitMQ node.
# Arguments go to the test program, such as: ./tests/containers.sh image::
#
#   TIDEGATE_TEST_TAG=0.1.0      tests images that are there (tidegate-coordinator:0.1.0, …) instead of building them
#   TIDEGATE_TEST_RABBITMQ=3.10  instead of 4.0
#   BUILD_IMAGE=… RUNTIME_IMAGE=…  builds on other images than those made here from Debian's packages
#
# Needs Docker's engine: one that runs, or as root on a Debian-like machine one that it installs and starts. It takes
# 10 GB of disk, and the better part of an hour the first time.
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/lib/setup.sh
. tests/containers/engine.sh
. tests/containers/bases.sh

ensure_rust
ensure compiler
folder=$(mktemp -d)
export TIDEGATE_TEST_RUN=$$
clean_up() {
  remove_leftovers "dev.tidegate.test=$TIDEGATE_TEST_RUN" || true
  stop_engine
  rm -rf "$folder"
}
trap clean_up EXIT
ensure_engine "$folder"
bases

# Layers that did not change are taken from the build before.
if [ -z "${TIDEGATE_TEST_TAG-}" ]; then
  export TIDEGATE_TEST_TAG=test
  revision=$(git describe --always --dirty 2>/dev/null || echo unknown)
  for program in coordinator worker cli emulator; do
    say "building tidegate-$program:$TIDEGATE_TEST_TAG, optimised …"
    quietly docker build --file deploy/Dockerfile --target "$program" --tag "tidegate-$program:$TIDEGATE_TEST_TAG" \
      --build-arg "BUILD_IMAGE=${BUILD_IMAGE:-tidegate-test/build:bookworm}" \
      --build-arg "RUNTIME_IMAGE=${RUNTIME_IMAGE:-tidegate-test/runtime:bookworm}" \
      --build-arg "REVISION=$revision" .
  done
fi

# One after the other: each is a whole installation.
say "testing …"
cargo test -p tidegate-container-tests --test containers -- --nocapture --test-threads=1 "$@"
