"""Tiny random Llama and Gemma models in which attention matters, as transformers models and Hugging Face folders.

Attention hardly changes the logits of llama.cpp's dummy models, because their weights are small against the residual
stream. Here Q and K are large enough for peaked attention, V and O outweigh the residual stream, and the FFN is small.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

DEMO = Path(__file__).parents[1] / "models" / "stdlib-5m"
N_LAYER, N_HEAD, HEAD_DIM = 8, 4, 32
HEADS = {"MHA": 4, "GQA": 2, "MQA": 1}  # n_head_kv


def shape(n_head_kv: int, head_dim: int, n_layer: int = N_LAYER) -> dict[str, Any]:
    """Return the common fields of a transformers configuration."""
    return {
        "vocab_size": 2048,
        "hidden_size": N_HEAD * head_dim,
        "intermediate_size": 64,
        "num_hidden_layers": n_layer,
        "num_attention_heads": N_HEAD,
        "num_key_value_heads": n_head_kv,
        "head_dim": head_dim,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def build(n_head_kv: int, head_dim: int = HEAD_DIM) -> LlamaForCausalLM:
    """Return a tiny Llama in float32, with the same random weights on every call."""
    torch.manual_seed(n_head_kv)
    model = LlamaForCausalLM(LlamaConfig(**shape(n_head_kv, head_dim), tie_word_embeddings=False))
    model.eval()  # type: ignore[no-untyped-call]
    gain = {"q_proj": 1.7, "k_proj": 1.7, "v_proj": 1.0, "o_proj": 1.5, "lm_head": 1.0, "embed_tokens": None}
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            scale = gain.get(name.split(".")[-2], 0.3)
            torch.nn.init.normal_(weight, std=1.0 if scale is None else scale / weight.shape[1] ** 0.5)
    return model


SLIDING = {"gemma2": 8, "gemma3": 12}  # n_layer; every 2nd or every 6th layer attends to all positions
N_SWA = 24  # sliding window in tokens


def build_sliding(arch: str) -> PreTrainedModel:
    """Return a tiny Gemma with a sliding window, `arch` being a key of SLIDING.

    Gemma has norms after attention and FFN, so the weight of the norm after the FFN must be small.
    """
    torch.manual_seed(1)
    special = {"sliding_window": N_SWA, "query_pre_attn_scalar": HEAD_DIM, "final_logit_softcapping": 30.0}
    kind = {"gemma2": "gemma2", "gemma3": "gemma3_text"}[arch]
    config = AutoConfig.for_model(kind, **shape(2, HEAD_DIM, SLIDING[arch]), **special)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        config, dtype=torch.float32
    ).eval()
    gain = {"q_proj": 1.7, "k_proj": 1.7, "o_proj": 1.5, "embed_tokens": None}
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            scale = gain.get(name.split(".")[-2], 1.0)
            torch.nn.init.normal_(weight, std=0.1 if scale is None else scale / weight.shape[1] ** 0.5)
        elif name.endswith("post_feedforward_layernorm.weight"):
            torch.nn.init.constant_(weight, -0.8)  # Gemma adds 1
        elif name.endswith(("q_norm.weight", "k_norm.weight")):
            torch.nn.init.constant_(weight, 0.5)
    return model


def save(model: PreTrainedModel, folder: Path) -> Path:
    """Write a Hugging Face folder that llama.cpp's converter accepts, with the tokenizer of the demo model."""
    model.save_pretrained(folder)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(DEMO / name, folder / name)
    return folder
