#!/usr/bin/env bash
# From a fresh machine (Python 3.11, git, cmake, g++) to an SA model that runs: install, build, export, generate, compare.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh

setup
mkdir -p build/quickstart
out=build/quickstart/stdlib-5m-SA6-9.gguf
.venv/bin/shareatt-export tests/models/stdlib-5m --spans 6-9 -o "$out" --force
.venv/bin/shareatt-export inspect "$out"
.venv/bin/shareatt-export run "$out" -n 96 -p 'import os

class Cache:
    def __init__(self, size):' 2>build/quickstart/run.log </dev/null
.venv/bin/python scripts/compare.py tests/models/stdlib-5m 6-9
