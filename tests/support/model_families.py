"""Tiny models of many transformers families in which attention matters, to compare the runtime with torch.

A row of FAMILIES is a model type of transformers and the configuration fields that it needs. All other fields are the
same for all families.
"""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from shareatt_export.formats.gguf_reader import read_header
from shareatt_export.model.facts import read_facts
from shareatt_export.model.spans import SourceMap
from tests.support import conversions, parity, tiny_models
from tests.support.parity import Case
from tests.support.torch_reference import SharedReference

N_LAYER, N_HEAD, N_HEAD_KV, HEAD_DIM = 8, 4, 2, 32
N_SWA = 24


@dataclass(frozen=True)
class Family:
    """How to configure a model type of transformers, and the spans to export it with."""

    config: dict[str, Any] = field(default_factory=dict)  # configuration fields beside the common ones
    saved: dict[str, Any] = field(default_factory=dict)  # fields that only the converter reads
    sentencepiece: bool = False  # the tokenizer: sentencepiece, or BPE
    n_layer: int = N_LAYER
    spans: str = "2-5"


EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
GROUPED = EXPERTS | {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1}
GROUPED |= {"n_group": 1, "topk_group": 1}
ERNIE_EXPERTS = EXPERTS | {"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1}
TIED = {"tie_word_embeddings": True}
MHA = {"num_key_value_heads": N_HEAD}
PAD = {"pad_token_id": 0}
SLIDING = {"sliding_window": N_SWA}
FULL, SWA = "full_attention", "sliding_attention"
FULL_FIRST = SLIDING | {"layer_types": [FULL, SWA, SWA, SWA] * 2}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}
DBRX = {
    "d_model": N_HEAD * HEAD_DIM,
    "n_heads": N_HEAD,
    "n_layers": N_LAYER,
    "max_seq_len": 512,
    "attn_config": {"kv_n_heads": N_HEAD_KV, "clip_qkv": 8.0, "rope_theta": 1e4},
    "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
}
# llama.cpp always rounds the bounds of YaRN's ramp; gpt-oss does not ("truncate"), an error of 1e-3 of the dense models
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}
YARN |= {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}
FAMILIES = {
    "llama": Family(sentencepiece=True),
    "mistral": Family({"sliding_window": None}, sentencepiece=True),
    "mixtral": Family({"sliding_window": None} | EXPERTS, sentencepiece=True),
    "qwen2": Family({"use_sliding_window": False}),
    "qwen2_moe": Family(EXPERTS | {"shared_expert_intermediate_size": 32, "decoder_sparse_step": 1}),
    "qwen3": Family({"use_sliding_window": False}),
    "qwen3_moe": Family(EXPERTS | {"decoder_sparse_step": 1, "norm_topk_prob": True}),
    "gemma": Family(TIED, sentencepiece=True),
    "gemma2": Family(TIED | SLIDING | {"query_pre_attn_scalar": HEAD_DIM}, sentencepiece=True, spans="2-7"),
    "gemma3_text": Family(
        TIED | SLIDING | {"query_pre_attn_scalar": HEAD_DIM}, sentencepiece=True, n_layer=12, spans="4-11"
    ),
    "olmo": Family({"clip_qkv": None}),
    "olmo2": Family(),
    "stablelm": Family({"partial_rotary_factor": 0.5, "use_qkv_bias": True}),
    "starcoder2": Family({"use_bias": True, "sliding_window": None}),
    "granite": Family({"attention_multiplier": 0.2, "embedding_multiplier": 2.0, "residual_multiplier": 0.5}),
    "granitemoe": Family(EXPERTS | {"attention_multiplier": 0.2}),
    "smollm3": Family({"no_rope_layer_interval": 4, "pad_token_id": 0}),
    "exaone4": Family({"sliding_window": None, "layer_types": [FULL] * N_LAYER}),
    "phi": Family(MHA | {"intermediate_size": 4 * N_HEAD * HEAD_DIM}),
    "phi3": Family(PAD | {"sliding_window": None}),
    "gpt_oss": Family(EXPERTS | SLIDING | {"rope_parameters": YARN}, spans="2-7"),
    "glm": Family(PAD),
    "glm4": Family(PAD),
    "glm4_moe": Family(PAD | GROUPED),
    "cohere": Family(TIED),
    "cohere2": Family(TIED | SLIDING, {"rotary_pct": 1.0}, spans="2-7"),
    "olmo3": Family(SLIDING, spans="2-7"),
    "olmoe": Family(EXPERTS | MHA),
    "gpt2": Family(saved={"n_ctx": 512}),
    "gpt_bigcode": Family(),
    # transformers drops rotary_pct. For an unknown model type, the converter reads config.json itself and finds it.
    "gpt_neox": Family(saved={"rotary_pct": 0.25, "model_type": "gptneox"}),
    "nemotron": Family(sentencepiece=True),
    "seed_oss": Family(),
    "apertus": Family(),
    "arcee": Family(),
    "jais2": Family(),
    "hunyuan_v1_dense": Family(PAD),
    "ernie4_5": Family(sentencepiece=True),
    "ernie4_5_moe": Family(ERNIE_EXPERTS, sentencepiece=True),
    "dots1": Family(MHA | GROUPED, {"scoring_func": "sigmoid"}),
    "minimax_m2": Family(EXPERTS, {"scoring_func": "sigmoid", "rotary_dim": HEAD_DIM}),
    "granitemoeshared": Family(EXPERTS | {"attention_multiplier": 0.2, "shared_intermediate_size": 32}),
    "ministral3": Family(sentencepiece=True),
    "llama4_text": Family(EXPERTS),
    "exaone_moe": Family(GROUPED | SLIDING | {"num_shared_experts": 1}, {"scoring_func": "sigmoid"}, spans="4-7"),
    "cohere2_moe": Family(TIED | EXPERTS | SLIDING, {"rotary_pct": 1.0}, spans="4-7"),
    "granite_swa": Family(SLIDING | {"attention_multiplier": 0.2}, spans="4-7"),
    "laguna": Family(EXPERTS | FULL_FIRST | {"shared_expert_intermediate_size": 32}, spans="4-7"),
    # llama.cpp uses one rope theta for sliding and full layers, so the configuration must have one as well
    "mellum": Family(EXPERTS | FULL_FIRST | {"rope_parameters": {FULL: ROPE, SWA: ROPE}}, spans="4-7"),
    "afmoe": Family(EXPERTS | SLIDING | {"mup_enabled": True}, {"route_norm": True}, spans="4-7"),
    # with the spans 2-5, rounding in flash attention changes the experts of one token
    "hy_v3": Family(PAD | EXPERTS, spans="1-4"),
    "solar_open": Family(PAD | GROUPED | {"first_k_dense_replace": 0, "rope_parameters": ROPE}),
    "dbrx": Family(DBRX),
    "internlm3": Family(sentencepiece=True),
}
REMOTE = "its code is in its repository on the Hub, not in transformers, and such code is not run here"
OWN_ATTENTION = "its attention in transformers does not use the attention interface, which the reference needs"
NOT_MADE = {
    "internlm2": REMOTE,
    "baichuan": REMOTE,
    "falcon": OWN_ATTENTION,
    "bloom": OWN_ATTENTION,
    "mpt": OWN_ATTENTION,
    "phimoe": "llama.cpp uses RMS norms and one softmax over the experts, transformers LayerNorm and SparseMixer, so "
    "the dense models differ (2e-1)",
    "hunyuan_v1_moe": "the converter needs the ranks of its tokenizer, which are only in its repository on the Hub",
    "bitnet": "the converter does not know the names of the norms in its layers in transformers",
}
# All families use the first two; Phi 3, GLM and Solar need the others.
SPECIAL_TOKENS = ["<s>", "</s>", "<unk>", "<|startoftext|>", "<|endoftext|>", "<|user|>", "<|observation|>", "[gMASK]"]
GAIN = {
    "q_proj": 1.7,
    "k_proj": 1.7,
    "qkv_proj": 1.7,
    "query_key_value": 1.7,
    "c_attn": 1.7,
    "Wqkv": 1.7,
    "o_proj": 1.5,
    "dense": 1.5,
    "out_proj": 1.5,
}


def config(family: str) -> Any:
    """Return the transformers configuration of the tiny model of `family`."""
    row = FAMILIES[family]
    common = tiny_models.shape(N_HEAD_KV, HEAD_DIM, row.n_layer) | {"tie_word_embeddings": False}
    return AutoConfig.for_model(family, **(common | row.config))


def build(family: str) -> PreTrainedModel:
    """Return the tiny model of `family` in float32, with the same random weights on every call."""
    torch.manual_seed(1)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        config(family), dtype=torch.float32
    ).eval()
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")  # the other implementations cannot compute in float64
    for name, weight in model.named_parameters():
        role = name.split(".")[-2]
        if weight.ndim >= 2:
            if "embed" in name or "wte" in name or "wpe" in name:
                scale = 1.0
            else:
                scale = GAIN.get(role, 1.0 if "v_proj" in name or "lm_head" in name else 0.4) / weight.shape[-1] ** 0.5
            torch.nn.init.normal_(weight, std=scale)
        elif "norm" not in name and "ln" not in name:
            torch.nn.init.normal_(weight, std=2.0 if "sinks" in name else 0.1)
    return model


def save(model: PreTrainedModel, family: str, folder: Path) -> Path:
    """Write the model and a tokenizer as a Hugging Face folder that the converter accepts, and return `folder`."""
    row = FAMILIES[family]
    (tiny_models.save if row.sentencepiece else save_with_bpe)(model, folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | row.saved))
    return folder


def save_with_bpe(model: PreTrainedModel, folder: Path) -> Path:
    """Write the model with a byte-level BPE tokenizer of one merge."""
    model.save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, "ab"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken(token) for token in SPECIAL_TOKENS])
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<s>", "eos_token": "</s>", "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return folder


def make_case(family: str, folder: Path) -> Case:
    """Return the tiny model of `family` in float64, and as dense GGUF in `folder`."""
    model = build(family)
    out = folder / "dense.gguf"
    conversions.convert(save(model, family, folder / family), out, "f32", known_tokenizer=False)
    return Case(model.double(), out)


def reference(
    case: Case, source_layers: SourceMap | None = None, kind: type[SharedReference] = SharedReference
) -> parity.Array:
    """Return the logits of the torch reference for the first sequence, of the dense model if source_layers is None."""
    n_layer = int(case.torch_model.config.num_hidden_layers)
    return case.reference(source_layers or tuple(range(n_layer)), kind=kind)


# ---------------------------------------------------------------- docs/ARCHITECTURES.md

PREFACE = """## Families of transformers

A tiny random model of each family, converted by llama.cpp's own converter, is compared with transformers in float64
(`tests/support/torch_reference.py`). The numbers are normalised mean squared errors of the logits.
`tests/llamacpp/test_families.py` checks four families on every run, and all of them with `scripts/test.sh --full`.
Dense and plain may be at most {tolerance:.0e}. With flash attention on (reuse, recompute), the error may be at most
twice that tolerance, or twice the error of the dense model between flash attention on and off.
"""


def report() -> Iterator[str]:
    """Yield the lines of the section on families in docs/ARCHITECTURES.md."""
    yield PREFACE.format(tolerance=parity.TOLERANCE["f32"])
    yield "| family | architecture | dense | plain | reuse | recompute | dense, flash |"
    yield "| --- | --- |" + " --- |" * 5
    for family, row in FAMILIES.items():
        with tempfile.TemporaryDirectory() as folder:
            case = make_case(family, Path(folder))
            shared = case.shared(row.spans, Path(folder))
            facts = read_facts(read_header(shared))
            errors = [parity.nmse(parity.logits(case.dense), reference(case))]
            expected = reference(case, facts.attention.source_layers)
            for path in ("plain", "reuse", "recompute"):
                errors.append(parity.nmse(parity.logits(shared, path=path), expected))
            errors.append(parity.flash_error_of_dense(case, "prefill"))
        yield f"| {family} | {facts.arch} | " + " | ".join(f"{error:.1e}" for error in errors) + " |"
    yield "\nFamilies that are not in this test:\n"
    yield "| family | why |"
    yield "| --- | --- |"
    for family, reason in NOT_MADE.items():
        yield f"| {family} | {reason} |"
