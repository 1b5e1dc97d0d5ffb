"""Child process of features.py: train a GGUF on a fixed text for two epochs, and print the losses as JSON.

python -m tests.support.training_child MODEL FLASH_ATTN

The calls are those of llama.cpp's examples/training/finetune.cpp. Gradients reach K and V, because a ubatch is as large
as the context.
"""

import ctypes
import json
import sys
from pathlib import Path

import numpy as np

from shareatt_export.llamacpp import runtime
from shareatt_export.llamacpp.engine import Context, Model
from shareatt_export.llamacpp.graph_callback import ggml_base
from tests.support import parity

N_CTX, N_DATA, N_EPOCHS = 256, 4, 2
I32 = 26  # ggml_type


class OptParams(ctypes.Structure):
    """struct llama_opt_params of llama.h; the bindings lack its last field."""

    _fields_ = [
        ("n_ctx_train", ctypes.c_uint32),
        ("param_filter", ctypes.c_void_p),
        ("param_filter_ud", ctypes.c_void_p),
        ("get_opt_pars", ctypes.c_void_p),
        ("get_opt_pars_ud", ctypes.c_void_p),
        ("optimizer_type", ctypes.c_int),
    ]


def main(path: str, flash_attn: str) -> None:
    """Print the loss of each epoch."""
    lib, base = parity.lib(), ggml_base(runtime.require().bin)
    pointer = ctypes.c_void_p
    base.ggml_opt_dataset_init.argtypes = [ctypes.c_int, ctypes.c_int, *[ctypes.c_int64] * 4]
    base.ggml_opt_dataset_init.restype = base.ggml_opt_result_init.restype = pointer
    base.ggml_opt_result_loss.argtypes = [pointer, ctypes.POINTER(ctypes.c_double), pointer]
    for function in (base.ggml_opt_dataset_data, base.ggml_opt_dataset_labels, base.ggml_get_data):
        function.argtypes, function.restype = [pointer], pointer
    dataset = base.ggml_opt_dataset_init(I32, I32, N_CTX, N_CTX, N_DATA, 1)
    params = {"n_ctx": N_CTX, "n_batch": N_CTX, "n_ubatch": N_CTX, "type_k": 0, "type_v": 0, "n_threads": 1}
    with Model(lib, Path(path), load_mode=0) as model, Context(model, flash_attn == "1", **params) as context:
        text = np.random.default_rng(1).integers(0, model.n_vocab, (N_DATA, N_CTX + 1), np.int32)
        for tensor, rows in (("data", text[:, :-1]), ("labels", text[:, 1:])):
            data = base.ggml_get_data(getattr(base, f"ggml_opt_dataset_{tensor}")(dataset))
            ctypes.memmove(data, np.ascontiguousarray(rows).ctypes.data, rows.nbytes)
        init = lib._lib.llama_opt_init
        init.argtypes, init.restype = [pointer, pointer, OptParams], None
        everything = ctypes.cast(lib._lib.llama_opt_param_filter_all, pointer)
        defaults = ctypes.cast(base.ggml_opt_get_default_optimizer_params, pointer)
        init(context.handle, model.handle, OptParams(0, everything, None, defaults, None, 0))
        losses = []
        for _ in range(N_EPOCHS):
            result = base.ggml_opt_result_init()
            lib.llama_opt_epoch(context.handle, dataset, result, None, N_DATA, None, None)
            loss = ctypes.c_double()
            base.ggml_opt_result_loss(result, ctypes.byref(loss), None)
            losses.append(loss.value)
    print(json.dumps(losses))


if __name__ == "__main__":
    main(*sys.argv[1:])
