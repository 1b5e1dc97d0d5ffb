#!/usr/bin/env bash
# Search for the map that costs least, export it with fitted followers, and compare it with a late span of the same size.
# The search is kept short here (few and small windows); leave these options away for a model that you want to use.
#   examples/search_and_fit.sh [FOLDER]
set -euo pipefail
folder="$(dirname "$0")/../tests/models/stdlib-5m"
text="$folder/heldout.txt"
out="${1:-$(mktemp -d)}"
mkdir -p "$out"
# every command below takes the folder as well, and converts it each time
model="$out/dense.gguf"
converter="$(shareatt-export runtime path)/../../llama.cpp/convert_hf_to_gguf.py"
python "$converter" "$folder" --outfile "$model"
head -c 8000 "$text" > "$out/calibration.txt"       # what the followers are fitted to
tail -c 8000 "$text" > "$out/heldout.txt"           # what the result is measured on

shareatt-export search "$model" --followers 2 --fast --ctx 128 --windows 4 --text "$out/calibration.txt" --json \
    > "$out/search.json"
spans="$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["spans"])' "$out/search.json")"
echo "found: $spans"

shareatt-export "$model" --spans "$spans" --align --refit --text "$out/calibration.txt" -o "$out/found.gguf"
shareatt-export "$model" --spans 8-10 -o "$out/late.gguf"
shareatt-export eval "$model" "$out/late.gguf" "$out/found.gguf" --text "$out/heldout.txt" --ctx 128 --windows 6 --no-baselines
