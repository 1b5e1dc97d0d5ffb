"""A dense model may use our kernels instead of flash attention: LLAMA_SHARED_ATTN_DENSE=1."""

import re
from pathlib import Path

import numpy as np
import pytest

from shareatt_export.errors import RuntimeProblem
from shareatt_export.exporting.convert import converted
from shareatt_export.llamacpp.engine import Context, Model
from tests.support import parity, tiny_models

DENSE = {"LLAMA_SHARED_ATTN_DENSE": "1"}
OWN = tuple(range(tiny_models.N_LAYER))
USED = re.compile(r"kernels of shared attention compute the attention of up to (\d+) tokens")


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
    with converted(tiny_models.save(tiny_models.build_sliding(arch), tmp_path / arch), tmp_path, "f32", None) as dense:
        plain = parity.logits(dense)
        assert parity.nmse(logits(dense), plain) <= parity.TOLERANCE["f32"]
        assert parity.nmse(logits(dense, "token by token"), plain) <= parity.TOLERANCE["f32"]


def context_log(file: Path, **params: int) -> str:
    with Model(parity.lib(), file) as model, Context(model, flash_attn=True, **params) as context:
        return context.log


def test_its_memory(cases):
    """By default a tenth of the KV cache, and enough for 64 tokens; the user may set another budget."""
    dense = cases["GQA", "f16"].dense
    assert not USED.search(context_log(dense, n_ctx=4096))
    of_64 = 64 * tiny_models.N_HEAD * 4096 * 2
    with parity.environment(DENSE):
        (found,) = USED.findall(context_log(dense, n_ctx=4096))
        assert int(found) == 64  # a tenth of the cache is less
        with parity.environment({parity.BUDGET: str(2 * of_64)}):
            assert USED.findall(context_log(dense, n_ctx=4096)) == ["128"]
        with parity.environment({parity.BUDGET: str(of_64 - 1)}):
            assert "flash attention, as the attention weights are too large" in context_log(dense, n_ctx=4096)
    assert np.array_equal(logits(dense, path="recompute"), parity.logits(dense, path="recompute"))  # a budget of 0


def test_other_values_are_refused(cases):
    with parity.environment({"LLAMA_SHARED_ATTN_DENSE": "yes"}), pytest.raises(RuntimeProblem, match="is not 0 or 1"):
        context_log(cases["GQA", "f16"].dense, n_ctx=512)
