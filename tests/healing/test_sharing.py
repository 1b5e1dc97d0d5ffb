"""Sharing in torch for many architectures: equal to the model without followers; a follower's Q and K do not matter."""

import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.support.torch_reference import SharedReference

SMALL = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "sliding_window": 8,
}
ARCHITECTURES = [
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "phi3",
    "olmo2",
    "gpt_oss",
    "starcoder2",
]
TOKENS = torch.arange(24)[None] % 64


def build(arch: str) -> torch.nn.Module:
    torch.manual_seed(0)
    extra = {"num_local_experts": 2, "num_experts_per_tok": 1} if arch == "gpt_oss" else {}
    config = AutoConfig.for_model(arch, **SMALL, **extra)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=1.5 / weight.shape[1] ** 0.5)
    return model


def logits(model: torch.nn.Module, source_layers: tuple[int, ...] | None) -> torch.Tensor:
    if source_layers is None:
        with torch.no_grad():
            return model(TOKENS).logits
    with SharedReference(source_layers).on(model):
        return model(TOKENS).logits


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_nothing_shared_is_the_model_itself(arch):
    model = build(arch)
    assert torch.equal(logits(model, (0, 1, 2, 3)), logits(model, None))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_followers_own_query_and_key_do_not_matter(arch):
    model = build(arch)
    shared = logits(model, (0, 1, 1, 3))
    assert not torch.allclose(shared, logits(model, None), rtol=1e-3)
    scramble(model, 2)
    assert torch.equal(logits(model, (0, 1, 1, 3)), shared)
    scramble(model, 1)
    assert not torch.allclose(logits(model, (0, 1, 1, 3)), shared, rtol=1e-3)


def test_followers_reuse_what_the_source_does_to_its_v(monkeypatch):
    """The source may scale its output after the softmax, by a gate or a sink. Followers must reuse that as well."""
    module = sys.modules["transformers.models.llama.modeling_llama"]
    eager = module.eager_attention_forward

    def gated(*args, **kwargs):
        output, weights = eager(*args, **kwargs)
        return output * 0.5, weights

    model, reference = build("llama"), SharedReference((0, 1, 1, 3))
    with reference.on(model):
        model(TOKENS)
        assert torch.allclose(reference.weights[1].sum(-1), torch.tensor(1.0))
        monkeypatch.setattr(module, "eager_attention_forward", gated)
    reference = SharedReference((0, 1, 1, 3))
    with reference.on(model):
        model(TOKENS)
        assert torch.allclose(reference.weights[1].sum(-1), torch.tensor(0.5))


def scramble(model: torch.nn.Module, layer: int) -> None:
    """Replace the Q and K projections; in a fused tensor (Phi-3), the rows of Q and K."""
    attention = model.model.layers[layer].self_attn
    if hasattr(attention, "qkv_proj"):
        weights = [attention.qkv_proj.weight.data[: 64 + 32]]
    else:
        weights = [attention.q_proj.weight.data, attention.k_proj.weight.data]
    for weight in weights:
        weight.copy_(torch.randn_like(weight))


def test_the_models_own_attention_is_put_back():
    model = build("llama")
    with pytest.raises(RuntimeError), SharedReference((0, 0, 0, 0)).on(model):
        raise RuntimeError
    assert model.config._attn_implementation == "eager"
