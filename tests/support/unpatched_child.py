"""Child of test_parity: the logits of a model on another libllama, as .npz with one array per mode.

python -m tests.support.unpatched_child PYTHON_DIR BIN_DIR MODEL OUT KV PATH
"""

import sys
from pathlib import Path

import numpy as np

from shareatt_export.llamacpp.bindings import SharedAttention, load
from tests.support import parity


def main(python: str, bin: str, model: str, out: str, kv: str, path: str) -> None:
    lib = load(Path(python), Path(bin))
    assert SharedAttention.from_bindings(lib) is None, "this library is patched"
    parity.lib = lambda: lib
    np.savez(out, **{mode: parity.logits(Path(model), mode, kv, path) for mode in parity.MODES})


if __name__ == "__main__":
    main(*sys.argv[1:])
