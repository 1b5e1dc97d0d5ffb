"""The first model of a new build: `python -m shareatt_export.smoke PYTHON_DIR BIN_DIR` exits 0 if it runs.

A child process of runtime.build, because a build for the wrong processor dies of a signal.
"""

import ctypes
import math
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np

from .bindings import SharedAttention, load
from .pin import pin

N_LAYER, N_EMBD, N_HEAD, N_VOCAB = 3, 64, 2, 32


def write_model(path: Path) -> None:
    """A random q8_0 Llama of three layers without a tokenizer."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(N_LAYER)
    writer.add_context_length(64)
    writer.add_embedding_length(N_EMBD)
    writer.add_feed_forward_length(N_EMBD)
    writer.add_head_count(N_HEAD)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(N_VOCAB)
    writer.add_tokenizer_model("no_vocab")
    rng = np.random.default_rng(0)
    names = [f"blk.{i}.{role}" for i in range(N_LAYER) for role in ("attn_q", "attn_k", "attn_v", "attn_output")]
    names += [f"blk.{i}.{role}" for i in range(N_LAYER) for role in ("ffn_gate", "ffn_down", "ffn_up")]
    shapes = dict.fromkeys(names, (N_EMBD, N_EMBD)) | {"token_embd": (N_VOCAB, N_EMBD)}
    for name, shape in shapes.items():
        data = gguf.quants.quantize(rng.standard_normal(shape, dtype=np.float32) / 8, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    norms = [f"blk.{i}.{role}" for i in range(N_LAYER) for role in ("attn_norm", "ffn_norm")]
    for name in [*norms, "output_norm"]:
        writer.add_tensor(f"{name}.weight", np.ones(N_EMBD, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(python: str, bin: str) -> int:
    lib = load(Path(python), Path(bin))
    shared = SharedAttention.of(lib)
    if shared is None or shared.abi() != pin().abi:
        print(f"the library's ABI is {shared and shared.abi()}, not {pin().abi}", file=sys.stderr)  # noqa: T201
        return 1
    lib.llama_backend_init()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "smoke.gguf"
        write_model(path)
        model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
    if not model or not shared.set(model, (0, 1, 1)):
        return 1
    params = lib.llama_context_default_params()
    params.n_ctx = params.n_batch = 64
    context = lib.llama_init_from_model(model, params)
    tokens = (lib.llama_token * 40)(*[i % N_VOCAB for i in range(40)])
    if not context or lib.llama_decode(context, lib.llama_batch_get_one(tokens, 40)) != 0:
        return 1
    logits = ctypes.cast(lib.llama_get_logits(context), ctypes.POINTER(ctypes.c_float))[:N_VOCAB]
    return 0 if all(map(math.isfinite, logits)) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
