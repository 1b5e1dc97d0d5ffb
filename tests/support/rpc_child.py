"""Child process of test_rpc.py: write the logits of a model whose layers are on RPC servers to a .npz file.

python -m tests.support.rpc_child PYTHON_DIR BIN_DIR MODEL OUT N_GPU_LAYERS SPLIT,SPLIT ENDPOINT...

It prints the device of each layer as JSON. This needs its own process, because a registered device cannot be removed,
and every later model of the process would use it.
"""

import ctypes
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from shareatt_export.llamacpp.bindings import load
from shareatt_export.llamacpp.engine import Context, Logits, Model, Token
from tests.support.small_gguf import F32_CACHE, tokens


def steps(context: Context) -> Logits:
    """Return the logits of a prompt in two ubatches, of single tokens, and of one token after a shift of positions."""
    logits = [context.decode(tokens(40)), *(context.decode(tokens(1, i)) for i in range(40, 43))]
    context.lib.llama_memory_seq_add(context.memory, 0, 0, -1, 50)
    return np.concatenate([*logits, context.decode([Token(5, 93)])])


def all_logits(model: Model) -> dict[str, Any]:
    """Return the logits of steps() without and with flash attention, by "False" and "True"."""
    logits = {}
    for flash_attn in (False, True):
        with Context(model, flash_attn, n_ubatch=32, **F32_CACHE) as context:
            logits[str(flash_attn)] = steps(context)
    return logits


def register(bin: Path, endpoints: list[str]) -> None:
    """Register RPC servers as devices, as the option --rpc of llama.cpp's tools does."""
    ggml = ctypes.CDLL(str(bin / "libggml.so"))
    for function in (ggml.ggml_backend_reg_by_name, ggml.ggml_backend_reg_get_proc_address):
        function.restype = ctypes.c_void_p
    ggml.ggml_backend_reg_get_proc_address.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    ggml.ggml_backend_register.argtypes = [ctypes.c_void_p]
    backend = ggml.ggml_backend_reg_by_name(b"RPC")
    assert backend, "this libggml has no RPC"
    address = ggml.ggml_backend_reg_get_proc_address(backend, b"ggml_backend_rpc_add_server")
    add_server = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)(address)
    for endpoint in endpoints:
        ggml.ggml_backend_register(add_server(endpoint.encode()))


def main(python: str, bin: str, path: str, out: str, n_gpu_layers: str, splits: str, *endpoints: str) -> None:
    """Write the logits of the model `path`, with its layers split over the endpoints in the proportions `splits`."""
    lib = load(Path(python), Path(bin))
    register(Path(bin), list(endpoints))
    split = (ctypes.c_float * lib.llama_max_devices())(*map(float, splits.split(",")))
    with Model(lib, Path(path), n_gpu_layers=int(n_gpu_layers), tensor_split=split) as model:
        np.savez(out, **all_logits(model))
    print(json.dumps(re.findall(r"layer +\d+ assigned to device (\S+),", model.log)))


if __name__ == "__main__":
    main(*sys.argv[1:])
