#!/usr/bin/env bash
# llama.cpp's own tests: unpatched, patched, and patched with SA models. Builds what is missing; --help tells the options.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh

setup --group dev
exec .venv/bin/python -m scripts.upstream "$@"
