"""Child process of test_parity.py: write the logits of a model on an unpatched libllama to a .npz file, by mode.

python -m tests.support.unpatched_child PYTHON_DIR BIN_DIR MODEL OUT KV PATH
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from shareatt_export.llamacpp.bindings import SharedAttention, load
from tests.support import parity


def main(python: str, bin: str, model: str, out: str, kv: str, path: str) -> None:
    """Write the logits; `kv` and `path` are those of parity.logits."""
    lib = load(Path(python), Path(bin))
    assert SharedAttention.from_bindings(lib) is None, "this library is patched"
    logits: dict[str, Any] = {mode: parity.logits(Path(model), mode, kv, path, library=lib) for mode in parity.MODES}
    np.savez(out, **logits)


if __name__ == "__main__":
    main(*sys.argv[1:])
