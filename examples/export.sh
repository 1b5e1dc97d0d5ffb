#!/usr/bin/env bash
# Export a Hugging Face checkpoint as an SA GGUF, look at it, quantise it, verify a copy from a GGUF, and generate text.
#   examples/export.sh [FOLDER]
set -euo pipefail
model="$(dirname "$0")/../tests/models/stdlib-5m"
out="${1:-$(mktemp -d)}"
mkdir -p "$out"

# Layer 6 computes its attention weights; layers 7, 8 and 9 reuse them.
shareatt-export "$model" --spans 6-9 -o "$out/sa.gguf"
shareatt-export inspect "$out/sa.gguf"

# A dense GGUF by llama.cpp's own converter, to check every copied byte of the SA file against.
converter="$(shareatt-export runtime path)/../../llama.cpp/convert_hf_to_gguf.py"
python "$converter" "$model" --outfile "$out/dense.gguf"
shareatt-export verify "$out/sa.gguf" --against "$out/dense.gguf"

shareatt-export run "$out/sa.gguf" -p 'def read_file(path):' -n 24 -- --temp 0 | tee "$out/text.txt"
grep -q 'def read_file' "$out/text.txt"
