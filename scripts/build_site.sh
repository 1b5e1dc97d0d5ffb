#!/usr/bin/env bash
# Builds the documents as a site that opens without a server and without a network: build/site/index.html.
# Warnings are errors. Everything is read anew, because Sphinx warns of a page only when it reads it.
#   pip install -c scripts/constraints.txt --group docs --editable .    (part of scripts/test.sh)
#   scripts/build_site.sh
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PWD/.venv/bin:$PATH
exec python -m sphinx --fail-on-warning --quiet --fresh-env --doctree-dir build/doctrees -c docs . build/site
