"""Run the first model on a new build, in a child process of build(); the exit status is 0 if it runs.

    python -m shareatt_export.llamacpp.smoke_test PYTHON_DIR BIN_DIR

It is a process of its own because a signal kills it if the build is for another processor.
"""

import ctypes
import math
import sys
import tempfile
from pathlib import Path

from ..model.synthetic import ModelShape, write_random
from .bindings import SharedAttention, load
from .pin import pin

MODEL_SHAPE = ModelShape(n_layer=3, n_embd=64, n_head=2, n_head_kv=2, head_dim=32, n_ff=64, n_vocab=32)
N_TOKENS = 40


def main(python: str, bin: str) -> int:
    """Load a small random q8_0 model, share a layer's attention and decode; return the exit status."""
    lib = load(Path(python), Path(bin))
    shared = SharedAttention.from_bindings(lib)
    if shared is None or shared.abi() != pin().abi:
        print(f"the library's ABI is {shared and shared.abi()}, not {pin().abi}", file=sys.stderr)  # noqa: T201
        return 1
    lib.llama_backend_init()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "smoke.gguf"
        write_random(path, MODEL_SHAPE)
        model_params = lib.llama_model_default_params()
        model_params.n_gpu_layers = 0  # what it tries is the code for this processor
        model = lib.llama_model_load_from_file(str(path).encode(), model_params)
    if not model or not shared.set_source_layers(model, (0, 1, 1)):
        return 1
    params = lib.llama_context_default_params()
    params.n_ctx = params.n_batch = 64
    context = lib.llama_init_from_model(model, params)
    tokens = (lib.llama_token * N_TOKENS)(*[i % MODEL_SHAPE.n_vocab for i in range(N_TOKENS)])
    if not context or lib.llama_decode(context, lib.llama_batch_get_one(tokens, N_TOKENS)) != 0:
        return 1
    logits = ctypes.cast(lib.llama_get_logits(context), ctypes.POINTER(ctypes.c_float))[: MODEL_SHAPE.n_vocab]
    return 0 if all(map(math.isfinite, logits)) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
