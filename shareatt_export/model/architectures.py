"""The architectures of llama.cpp: which can share attention, what they need, and why the others cannot.

The names are the values of `general.architecture`. Supported architectures build Q, K and V with llama.cpp's
build_qkv, where the patch has its hook. To support another one, add a row here and to shared_attn_archs in
llama-shared-attn.cpp, and run tests/llamacpp/test_architectures.py.
"""

import re
from dataclasses import dataclass

QK = frozenset({"attn_q", "attn_k", "attn_q_norm", "attn_k_norm", "attn_sinks"})


@dataclass(frozen=True)
class Sliding:
    """Which layers attend to a sliding window (or chunk); the others attend to all tokens (load_swa_pattern)."""

    period: int = 0  # one layer in `period` attends to all tokens; 0: the file must say which layers do
    dense_first: bool = False  # that layer is the first of a period, not the last
    window: int = 0  # tokens, if the file does not say; 0: then no layer has a sliding window
    n_layer: int | None = None  # only models with this number of layers have sliding windows; None: all models


@dataclass(frozen=True)
class Architecture:
    """How an architecture names the tensors of a layer: without `blk.N.` and without .weight, .bias or .scale."""

    qk: frozenset[str] = QK  # used for the attention weights alone, so a follower drops them
    fused_qkv: str = "attn_qkv"  # rows of Q, then of K, then of V; a follower keeps the rows of V as `v`
    v: str = "attn_v"
    sliding: Sliding | None = None
    causal: bool = True  # False: an encoder, which has no KV cache
    layers_only: str | None = None  # why single KV groups cannot share or be dropped


SLIDING = {
    "afmoe": Sliding(4),
    "cohere2": Sliding(4),
    "cohere2moe": Sliding(4, dense_first=True),
    "exaone-moe": Sliding(4, window=128),
    "exaone4": Sliding(4, window=4096, n_layer=64),
    "gemma2": Sliding(2, window=4096),
    "gemma3": Sliding(6),
    "gpt-oss": Sliding(2),
    "granite_swa": Sliding(),
    "laguna": Sliding(4, dense_first=True),
    "llama4": Sliding(4, window=8192),
    "maple": Sliding(),
    "mellum": Sliding(4),
    "muse-glimmer": Sliding(4),
    "olmo2": Sliding(4),
    "smallthinker": Sliding(4, dense_first=True),
    "spark2_5": Sliding(),
    "step35": Sliding(),
}
FULL = """
    apertus arcee arctic baichuan bailingmoe bailingmoe2 bitnet bloom chameleon chatglm codeshell command-r dbrx deci
    deepseek dots1 ernie4_5 ernie4_5-moe exaone falcon gemma glm4 glm4moe gpt2 gptneox granite granitemoe grok grovemoe
    hunyuan-dense hunyuan-moe hunyuan_vl hy_v3 internlm2 jais jais2 llama maincoder minicpm minimax-m2 mistral3 mpt
    nanbeige nemotron olmo olmoe orion paddleocr pangu-embedded phi2 phi3 phimoe plamo pockettts qwen qwen2 qwen2moe
    qwen2vl qwen3 qwen3moe qwen3tts qwen3vl qwen3vlmoe refact seed_oss smollm3 stablelm starcoder starcoder2 talkie
    xverse
"""
SLIDING_ENCODERS = {"gemma-embedding": Sliding(6), "modern-bert": Sliding(3, dense_first=True)}
ENCODERS = """
    bert dream eurobert jina-bert-v2 jina-bert-v3 llada llada-moe llama-embed neo-bert nomic-bert nomic-bert-moe rnd1
"""
ALIBI = "its attention is biased by the number of a head (ALiBi)"
ACROSS_HEADS = "its Q and K are normalised across all heads"
GATED = "its attention output is scaled or normalised across all heads"
LAYERS_ONLY = {
    **dict.fromkeys(("baichuan", "bloom", "jais", "jina-bert-v2", "mpt", "refact"), ALIBI),
    **dict.fromkeys(("minimax-m2", "olmo2", "olmoe"), ACROSS_HEADS),
    **dict.fromkeys(("afmoe", "bitnet", "laguna", "muse-glimmer", "spark2_5", "step35"), GATED),
}


def _architecture(name: str) -> Architecture:
    encodes = name in ENCODERS.split() or name in SLIDING_ENCODERS
    sliding = SLIDING.get(name) or SLIDING_ENCODERS.get(name)
    return Architecture(sliding=sliding, causal=not encodes, layers_only=LAYERS_ONLY.get(name))


ARCHITECTURES = {
    name: _architecture(name) for name in sorted([*FULL.split(), *SLIDING, *ENCODERS.split(), *SLIDING_ENCODERS])
}

MLA = "its latent attention (MLA) keeps one latent for both K and V, so a follower would save nothing of it"
RECURRENT = "it has recurrent layers, which have no attention weights, between those of attention"
CROSS_KV = "some of its layers share the KV cache of others already"
OWN_QKV = "llama.cpp builds its Q, K and V in the model's own code, where the patch has no hook"
REASONS = {
    "deepseek2 deepseek2-ocr deepseek32 deepseek4 dots3note glm-dsa hy_v4 minicpm3 mistral4 plm": MLA,
    "arwkv7 bailingmoe3 falcon-h1 glm5-next granitehybrid jamba kimi-k3 kimi-linear lfm2 lfm2moe": RECURRENT,
    "mamba mamba2 minimax-01 nemotron_h nemotron_h_moe plamo2 qwen35 qwen35moe qwen3next qwen4exp": RECURRENT,
    "rwkv6 rwkv6qwen2 rwkv7": RECURRENT,
    "gemma3n gemma4 gemma4-assistant": CROSS_KV,
    "cogvlm dflash eagle3 graniteswitch mimo2 openelm plamo3": OWN_QKV,
    "hrm_text": "its layers run several times with the same weights",
    "minimax-m3": "its attention chooses blocks of K with an index of its own",
    "t5 t5encoder": "it is an encoder-decoder with relative attention biases of its own",
    "clip gptj wavtokenizer-dec": "llama.cpp does not run it as a language model",
}
REFUSED = {name: reason for names, reason in REASONS.items() for name in names.split()}


def split_tensor_name(name: str) -> tuple[int | None, str, str]:
    """Split 'blk.7.attn_q.weight' into (7, 'attn_q', 'weight'); the layer is None for tensors outside of layers."""
    parts = name.split(".")
    if parts[0] != "blk" or len(parts) < 3 or not re.fullmatch("0|[1-9][0-9]{0,3}", parts[1]):
        return None, name, ""
    return int(parts[1]), parts[2], ".".join(parts[3:])
