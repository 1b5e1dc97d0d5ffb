"""LoRA adapters and control vectors on SA models give the logits of a model with the same change in its weights."""

import ctypes

import numpy as np
import pytest

from shareatt_export.llamacpp.engine import Context, Log, Model
from tests.support import parity, small_gguf
from tests.support.exports import export
from tests.support.lora_adapters import apply_lora, merge_lora, write_lora
from tests.support.parity import nmse
from tests.support.small_gguf import F32_CACHE, tokens
from tests.support.source_layers import SOURCE_LAYERS

FOLLOWERS = [layer for layer, source in enumerate(SOURCE_LAYERS) if layer != source]
LORAS = {
    "values of followers": [f"blk.{layer}.attn_v" for layer in FOLLOWERS],
    "output of followers": [f"blk.{layer}.attn_output" for layer in FOLLOWERS],
    "FFN of followers": [f"blk.{layer}.ffn_{part}" for layer in FOLLOWERS for part in ("gate", "up", "down")],
    "query of the source": ["blk.6.attn_q"],
    "key of the source": ["blk.6.attn_k"],
    "all that an SA model has": [
        f"blk.{layer}.{role}"
        for layer in range(small_gguf.N_LAYER)
        for role in small_gguf.ROWS
        if layer not in FOLLOWERS or role not in ("attn_q", "attn_k")
    ],
}


@pytest.fixture(scope="module")
def dense(tmp_path_factory, built):
    return small_gguf.write_dense(tmp_path_factory.mktemp("adapters") / "dense.gguf")


@pytest.fixture(scope="module")
def shared(dense):
    return export(dense, dense.parent / "shared.gguf")


def logits(path, flash_attn, prepare=lambda model, context: None):
    with Model(parity.lib(), path) as model, Context(model, flash_attn, **F32_CACHE) as context:
        prepare(model, context)
        return context.decode(tokens(20))


@pytest.mark.parametrize("flash_attn", [False, True])
@pytest.mark.parametrize("names", LORAS.values(), ids=LORAS)
def test_a_lora_is_the_merged_weights(dense, shared, tmp_path, names, flash_attn):
    adapter = write_lora(tmp_path / "lora.gguf", names)
    merged = export(merge_lora(dense, tmp_path / "merged.gguf", names), tmp_path / "shared.gguf")
    adapted = logits(shared, flash_attn, lambda model, context: apply_lora(model, context, adapter))
    tolerance = 1e-5 if flash_attn else 1e-10
    assert nmse(adapted, logits(merged, flash_attn)) < tolerance
    assert nmse(adapted, logits(shared, flash_attn)) > 100 * tolerance


@pytest.mark.fault("M")
@pytest.mark.parametrize("role", ["attn_q", "attn_k"])
def test_a_lora_of_a_followers_query_or_key_is_refused(shared, tmp_path, role):
    """The refusal names the tensor, and the model stays usable."""
    adapter = write_lora(tmp_path / "lora.gguf", ["blk.6.attn_q", f"blk.8.{role}"])
    with Model(parity.lib(), shared) as model:
        with Log(parity.lib()) as log:
            assert not model.lib.llama_adapter_lora_init(model.handle, str(adapter).encode())
        assert f"LoRA tensor 'blk.8.{role}.weight': layer 8 reuses the attention weights of layer 6" in log.error()
        with Context(model, **F32_CACHE) as context:
            assert np.isfinite(context.decode(tokens(5))).all()


@pytest.mark.parametrize("flash_attn", [False, True])
@pytest.mark.parametrize("layer", [6, 8], ids=["source", "follower"])
def test_a_control_vector_is_a_bias(dense, shared, tmp_path, layer, flash_attn):
    """It is added to the output of a layer, like a bias of the last projection in the layer."""
    vector = np.random.default_rng(layer).standard_normal(small_gguf.N_EMBD, dtype=np.float32)
    directions = np.zeros((small_gguf.N_LAYER - 1, small_gguf.N_EMBD), np.float32)  # layer 0 has none
    directions[layer - 1] = vector
    data = directions.ctypes.data_as(ctypes.POINTER(ctypes.c_float))

    def steer(model, context):
        arguments = data, directions.size, small_gguf.N_EMBD, 1, small_gguf.N_LAYER
        assert model.lib.llama_set_adapter_cvec(context.handle, *arguments) == 0

    biased = small_gguf.write_dense(tmp_path / "biased.gguf", down_bias={layer: vector})
    steered = logits(shared, flash_attn, steer)
    tolerance = 1e-5 if flash_attn else 1e-10
    assert nmse(steered, logits(export(biased, tmp_path / "shared.gguf"), flash_attn)) < tolerance
    assert nmse(steered, logits(shared, flash_attn)) > 100 * tolerance
