"""Small models of any architecture, with random weights. llama.cpp lists the tensors of the architecture.

    make("qwen3", Path("dense.gguf"))

Attention matters in them: Q and K are so large that the attention weights are far from uniform. Where an architecture
needs a metadata key, its value is that of llama.cpp's tests/test-llama-archs.cpp.
"""

import ctypes
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np

from shareatt_export.llamacpp import runtime
from shareatt_export.llamacpp.graph_callback import Tensor, ggml_base
from tests.support import parity

N_VOCAB, N_EMBD, N_HEAD, N_HEAD_KV, HEAD_DIM, N_FF = 128, 256, 4, 2, 64, 384
N_LAYER = 4
WINDOW = 8  # size of the sliding window, in tokens

EQUAL_HEADS = {"bert", "bloom", "gpt2", "gptneox", "jais", "jina-bert-v2", "mpt", "neo-bert", "nomic-bert", "qwen"}
EQUAL_HEADS |= {
    "bailingmoe",
    "bitnet",
    "dots1",
    "olmoe",
    "jina-bert-v3",
    "modern-bert",
    "nomic-bert-moe",
    "phi2",
    "refact",
}
DENSE = """
    apertus arcee baichuan bert bitnet bloom chameleon chatglm codeshell cohere2 command-r deci dream ernie4_5 eurobert
    exaone exaone4 falcon gemma gemma-embedding gemma2 gemma3 glm4 gpt2 gptneox granite granite_swa hunyuan-dense
    hunyuan_vl internlm2 jais jais2 jina-bert-v2 jina-bert-v3 llada llama llama-embed maincoder minicpm mistral3
    modern-bert mpt muse-glimmer nanbeige nemotron neo-bert nomic-bert olmo olmo2 orion paddleocr pangu-embedded phi2
    phi3 plamo pockettts qwen qwen2 qwen2vl qwen3 qwen3tts qwen3vl refact seed_oss smollm3 spark2_5 stablelm starcoder
    starcoder2 talkie xverse
"""
PER_LAYER_FLAGS = {"granite_swa", "maple", "muse-glimmer", "spark2_5", "step35"}
SPECIAL: dict[str, dict[str, Any]] = {
    "exaone4": {"block_count": 64},
    "chameleon": {"vocab_size": 10240},
    "llama4": {"attention.sliding_window": None, "attention.sliding_window_pattern": 4, "block_count": 8},
    "qwen3tts": {"vocab_size": 3072},
    "mamba": {"ssm.conv_kernel": 4, "ssm.inner_size": 2 * N_EMBD, "ssm.state_size": 16, "ssm.time_step_rank": 16},
}


def metadata(arch: str, extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata values of `arch`, by key without the prefix of the architecture; `extra` comes on top."""
    special = SPECIAL.get(arch, {}) | dict(extra)
    n_layer = special.get("block_count", N_LAYER)
    values: dict[str, Any] = {
        "vocab_size": N_VOCAB,
        "context_length": 256,
        "embedding_length": N_EMBD,
        "features_length": N_EMBD,
        "block_count": n_layer,
        "leading_dense_block_count": 1,
        "feed_forward_length": N_FF,
        "use_parallel_residual": False,
        "logit_scale": 1.0,
        "attention.head_count": N_HEAD,
        "attention.head_count_kv": N_HEAD if arch in EQUAL_HEADS else N_HEAD_KV,
        "attention.key_length": HEAD_DIM,
        "attention.value_length": HEAD_DIM,
        "attention.max_alibi_bias": 8.0,
        "attention.clamp_kqv": 4.0,
        "attention.layer_norm_epsilon": 1e-5,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.group_norm_epsilon": 1e-5,
        "attention.group_norm_groups": 8,
        "attention.sliding_window": WINDOW,
        "attention.sliding_window_pattern": [i % 2 == 0 for i in range(n_layer)] if arch in PER_LAYER_FLAGS else 2,
        "rope.dimension_sections": [HEAD_DIM // 4] * 4,
        "residual_scale": 1.0,
        "embedding_scale": 1.0,
        "xielu.alpha_n": 1.0,
        "xielu.alpha_p": 1.0,
        "xielu.beta": 1.0,
        "xielu.eps": 1e-7,
        "swiglu_clamp_exp": 7.0,
    }
    if arch not in DENSE.split():
        values |= {
            "expert_feed_forward_length": N_FF,
            "expert_shared_feed_forward_length": N_FF // 2,
            "expert_chunk_feed_forward_length": N_FF,
            "interleave_moe_layer_step": 2,
            "expert_count": 2,
            "expert_used_count": 2,
            "expert_shared_count": 1,
            "expert_gating_func": 2,
            "expert_group_scale": 1.0,
            "experts_per_group": 1,
            "moe_every_n_layers": 2,
        }
    return {key: value for key, value in (values | special).items() if value is not None}


def write(arch: str, path: Path, tensors: dict[str, np.ndarray[Any, Any]], extra: Mapping[str, Any]) -> None:
    """Write a GGUF of `arch` with these tensors, given in numpy's order of axes, and `extra` metadata."""
    writer = gguf.GGUFWriter(path, arch)
    values = metadata(arch, extra)
    for key, value in values.items():
        name = key if key.startswith("xielu.") else f"{arch}.{key}"
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        else:
            writer.add_array(name, value)
    n_vocab = values["vocab_size"]
    writer.add_tokenizer_model("test")
    writer.add_token_list([f"tok_{i}" for i in range(n_vocab)])
    writer.add_token_scores([0.0] * n_vocab)
    writer.add_token_type_count(2)
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class GgufParams(ctypes.Structure):
    """struct gguf_init_params of ggml's gguf.h."""

    _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p)]


def shapes(arch: str, extra: Mapping[str, Any] = MappingProxyType({})) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of `arch`, axes in ggml's order, by name.

    llama_model_init_from_user asks for the data of each tensor. Raises RuntimeError if llama.cpp refuses the model.
    """
    lib, base = parity.lib(), ggml_base(runtime.require().bin)
    found: dict[str, tuple[int, ...]] = {}
    base.ggml_n_dims.argtypes = [ctypes.c_void_p]
    base.gguf_init_from_file.argtypes, base.gguf_init_from_file.restype = [ctypes.c_char_p, GgufParams], ctypes.c_void_p
    base.gguf_free.argtypes = [ctypes.c_void_p]

    def take(tensor: int, data: object) -> None:
        n_dims = base.ggml_n_dims(tensor)
        found[Tensor.from_address(tensor).name.decode()] = tuple(Tensor.from_address(tensor).ne[:n_dims])

    callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(take)
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "header.gguf"
        write(arch, path, {}, extra)
        header = base.gguf_init_from_file(str(path).encode(), GgufParams(True, None))
        function = lib._lib.llama_model_init_from_user
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, lib.llama_model_params]
        function.restype = ctypes.c_void_p
        model = function(header, ctypes.cast(callback, ctypes.c_void_p), None, lib.llama_model_default_params())
        if not model:
            raise RuntimeError(f"{arch}: llama_model_init_from_user")
        lib.llama_model_free(ctypes.c_void_p(model))
        base.gguf_free(header)
    return found


def make(arch: str, path: Path, extra: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Write a small model of `arch`, the same on every call. `extra`: metadata, by key without the architecture."""
    rng = np.random.default_rng(1)
    tensors = {}
    for name, shape in shapes(arch, extra).items():
        role = name.split(".")[-2]
        data = rng.standard_normal(shape[::-1]).astype(np.float32)
        if name.endswith("ssm_a"):
            data = -np.abs(data)  # the state decays
        elif ("norm" in role and name.endswith("weight")) or name.endswith("scale"):
            data = 1 + 0.1 * data
        elif name.endswith("bias") or len(shape) == 1:
            data *= 0.1
        else:
            data *= (2.5 if role in ("attn_q", "attn_k", "attn_qkv") else 1.0) / np.sqrt(shape[0])
        tensors[name] = data
    write(arch, path, tensors, extra)
