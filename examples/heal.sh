#!/usr/bin/env bash
# Train a checkpoint for its shared attention, and export the result. The unchanged model is the teacher.
# Four small steps show the way; a model that you want to use takes a quarter of an hour or more (leave --steps away).
#   examples/heal.sh [FOLDER]
set -euo pipefail
model="$(dirname "$0")/../tests/models/stdlib-5m"
out="${1:-$(mktemp -d)}"
mkdir -p "$out"

shareatt-export heal "$model" --spans 6-9 --steps 4 --ctx 64 --batch 1 --text "$model/heldout.txt" -o "$out/healed"
shareatt-export "$out/healed" --spans 6-9 -o "$out/healed.gguf"
shareatt-export inspect "$out/healed.gguf"
