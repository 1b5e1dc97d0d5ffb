"""Tiny random Llama models whose output hangs on attention, as Hugging Face folders.

Upstream's dummy models are blind to attention: with small weights the residual stream drowns it. Here Q and K are
large enough for peaked attention, V and O outweigh the residual stream, and the FFN is small.
"""

import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

DEMO = Path(__file__).parent / "models" / "stdlib-5m"
N_LAYER, N_HEAD, HEAD_DIM = 8, 4, 32
HEADS = {"MHA": 4, "GQA": 2, "MQA": 1}  # n_head_kv


def config(n_head_kv: int, head_dim: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=2048,
        hidden_size=N_HEAD * head_dim,
        intermediate_size=64,
        num_hidden_layers=N_LAYER,
        num_attention_heads=N_HEAD,
        num_key_value_heads=n_head_kv,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )


def build(n_head_kv: int, head_dim: int = HEAD_DIM) -> LlamaForCausalLM:
    torch.manual_seed(n_head_kv)
    model = LlamaForCausalLM(config(n_head_kv, head_dim)).eval()
    gain = {"q_proj": 1.7, "k_proj": 1.7, "v_proj": 1.0, "o_proj": 1.5, "lm_head": 1.0, "embed_tokens": None}
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            scale = gain.get(name.split(".")[-2], 0.3)
            torch.nn.init.normal_(weight, std=1.0 if scale is None else scale / weight.shape[1] ** 0.5)
    return model


def save(model: LlamaForCausalLM, folder: Path) -> Path:
    """As a folder that the real converter takes; the tokenizer is the demo model's."""
    model.save_pretrained(folder)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(DEMO / name, folder / name)
    return folder
