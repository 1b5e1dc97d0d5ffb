# Sourced by quickstart.sh and test.sh: the virtual environment .venv with this checkout in it, and the runtime.
#   setup PIP-ARGUMENT...

setup() {
    [ -x .venv/bin/python ] || python3 -m venv .venv
    .venv/bin/pip install --quiet --upgrade 'pip>=25.1'
    .venv/bin/pip install --quiet --constraint scripts/constraints.txt ninja --editable '.[hf]' "$@"
    .venv/bin/shareatt-export runtime build
}
