#!/usr/bin/env bash
# Writes what each program is built from (CycloneDX 1.5, JSON): coordinator, worker, and the CLI. From the same sources
# come the same bytes, on any machine.
#
#   deploy/sbom.sh [FOLDER]     # default: target/sbom
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "${1:-$here/../target/sbom}"
folder=$(cd "${1:-$here/../target/sbom}" && pwd)
cd "$here/.."
. deploy/lib/setup.sh

ensure_rust
ensure compiler python
command -v cargo-cyclonedx >/dev/null || cargo install --locked cargo-cyclonedx --version '~0.5'

# The tool writes beside each package's manifest.
trap 'find . -name "*_bin.cdx.json" -not -path "./target/*" -delete' EXIT
# Without it, every document has a time and a serial number of its own.
export SOURCE_DATE_EPOCH=0
cargo cyclonedx --quiet --format json --spec-version 1.5 --describe binaries --target x86_64-unknown-linux-gnu >&2
python3 deploy/lib/sbom.py "$folder" coordinator/coordinator_bin.cdx.json coordinator/tidegate_bin.cdx.json \
  worker/worker_bin.cdx.json
