#!/usr/bin/env bash
# All checks: lint, types, the site of the documents, and every test, on the real runtime.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh

setup --group dev
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/mypy --platform win32 shareatt_export
scripts/build_site.sh
.venv/bin/shareatt-export runtime build --unpatched
models=(smollm2 prose)
[[ " $* " != *" --real "* ]] || models=(all)
.venv/bin/python scripts/fetch_models.py "${models[@]}"
# threads that spin at barriers take minutes where others want the processor
OMP_WAIT_POLICY=passive .venv/bin/pytest -n logical --maxprocesses 4 --dist worksteal "$@"
