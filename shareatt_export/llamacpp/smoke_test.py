"""The first model of a new build; exits 0 if it runs.

    python -m shareatt_export.llamacpp.smoke_test PYTHON_DIR BIN_DIR

A child process of build(), because a build for the wrong processor dies of a signal.
"""

import ctypes
import math
import sys
import tempfile
from pathlib import Path

from ..model.synthetic import ModelShape, write_random
from .bindings import SharedAttention, load
from .pin import pin

SHAPE = ModelShape(n_layer=3, n_embd=64, n_head=2, n_head_kv=2, head_dim=32, n_ff=64, n_vocab=32)


def main(python: str, bin: str) -> int:
    lib = load(Path(python), Path(bin))
    shared = SharedAttention.of(lib)
    if shared is None or shared.abi() != pin().abi:
        print(f"the library's ABI is {shared and shared.abi()}, not {pin().abi}", file=sys.stderr)  # noqa: T201
        return 1
    lib.llama_backend_init()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "smoke.gguf"
        write_random(path, SHAPE)
        model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
    if not model or not shared.set(model, (0, 1, 1)):
        return 1
    params = lib.llama_context_default_params()
    params.n_ctx = params.n_batch = 64
    context = lib.llama_init_from_model(model, params)
    tokens = (lib.llama_token * 40)(*[i % SHAPE.n_vocab for i in range(40)])
    if not context or lib.llama_decode(context, lib.llama_batch_get_one(tokens, 40)) != 0:
        return 1
    logits = ctypes.cast(lib.llama_get_logits(context), ctypes.POINTER(ctypes.c_float))[: SHAPE.n_vocab]
    return 0 if all(map(math.isfinite, logits)) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
