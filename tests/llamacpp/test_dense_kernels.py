"""A dense model may use our kernels instead of flash attention: LLAMA_SHARED_ATTN_DENSE=1."""

import re
from pathlib import Path

import numpy as np
import pytest

from shareatt_export.errors import RuntimeProblem
from shareatt_export.llamacpp.engine import Context, Model
from tests.support import conversions, parity, tiny_models

DENSE = {"LLAMA_SHARED_ATTN_DENSE": "1"}
OWN = tuple(range(tiny_models.N_LAYER))
USED = "kernels of shared attention compute the attention"


def logits(file: Path, mode: str = "prefill", kv: str = "f32", path: str = "reuse") -> parity.Array:
    with parity.environment(DENSE):
        return parity.logits(file, mode, kv, path)


@pytest.mark.parametrize("mode", parity.MODES)
@pytest.mark.parametrize("kv", parity.TOLERANCE)
@pytest.mark.parametrize("heads", tiny_models.HEADS)
def test_it_is_the_reference(cases, heads, kv, mode):
    case = cases[heads, kv]
    expected = case.reference(OWN, parity.MODES[mode].sequence)
    found = logits(case.dense, mode, kv)
    assert parity.nmse(found, expected) <= parity.TOLERANCE[kv]
    assert not np.array_equal(found, parity.logits(case.dense, mode, kv, "recompute"))  # those of flash attention
    wrong = case.reference(OWN, 1 - parity.MODES[mode].sequence)
    assert parity.nmse(found, wrong) > 100 * parity.TOLERANCE[kv]


@pytest.mark.parametrize("kv", parity.KV_TYPES)
def test_cache_types_cost_what_they_cost_with_flash_attention(wide, kv):
    expected = wide.reference(OWN)
    flash = parity.nmse(parity.logits(wide.dense, "several ubatches", kv, "recompute"), expected)
    assert 0 < parity.nmse(logits(wide.dense, "several ubatches", kv), expected) <= 2 * flash


@pytest.mark.parametrize("arch", tiny_models.SLIDING)
def test_sliding_windows_and_soft_caps(built, tmp_path, arch):
    """Such a model has two caches, each with a budget of its own."""
    source = tiny_models.save(tiny_models.build_sliding(arch), tmp_path / arch)
    dense = conversions.convert(source, tmp_path / "dense.gguf", "f32")
    plain = parity.logits(dense)
    assert parity.nmse(logits(dense), plain) <= parity.TOLERANCE["f32"]
    assert parity.nmse(logits(dense, "token by token"), plain) <= parity.TOLERANCE["f32"]


def context_log(file: Path, **params: int) -> str:
    with Model(parity.lib(), file) as model, Context(model, flash_attn=True, **params) as context:
        return context.log


def compute_buffers(log: str) -> float:
    """Return the MiB of the compute buffers."""
    return sum(map(float, re.findall(r"compute buffer size = +([0-9.]+) MiB", log)))


@pytest.mark.parametrize("heads", tiny_models.HEADS)
def test_it_takes_the_memory_of_flash_attention(cases, heads):
    """No attention weights are kept, so their budget says nothing."""
    dense = cases[heads, "f16"].dense
    flash = context_log(dense, n_ctx=16384)
    with parity.environment(DENSE | {parity.BUDGET: "0"}):
        kernels = context_log(dense, n_ctx=16384)
    assert USED in kernels and USED not in flash
    assert 0 < compute_buffers(kernels) <= 1.01 * compute_buffers(flash)


def test_other_values_are_refused(cases):
    with parity.environment({"LLAMA_SHARED_ATTN_DENSE": "yes"}), pytest.raises(RuntimeProblem, match="is not 0 or 1"):
        context_log(cases["GQA", "f16"].dense, n_ctx=512)
