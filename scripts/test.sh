#!/usr/bin/env bash
# All checks: lint, types, the site of the documents, and every test, on the real runtime.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh

setup --group dev
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# both platforms are checked at the same time, each with a cache of its own, as one cache holds one platform
.venv/bin/mypy & types=$!
.venv/bin/mypy --platform win32 --cache-dir .mypy_cache/win32 shareatt_export
scripts/build_site.sh
wait $types
.venv/bin/shareatt-export runtime build --unpatched
models=(smollm2 prose)
[[ " $* " != *" --real "* ]] || models=(all)
.venv/bin/python scripts/fetch_models.py "${models[@]}"
# threads that spin at barriers take minutes where others want the processor, and torch needs no more threads than processes
OMP_WAIT_POLICY=passive OMP_NUM_THREADS=1 .venv/bin/pytest -n logical --maxprocesses 4 --dist worksteal "$@"
