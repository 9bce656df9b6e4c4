#!/usr/bin/env bash
# Measure every mechanism on one CUDA device in under 8 minutes: benchmarks/device.sh [--device cuda] [--budget S] ...
# The same command goes on where it stopped; rows are in build/device_*.jsonl, the table in results/device_*.csv.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" -m benchmarks.device "$@"
