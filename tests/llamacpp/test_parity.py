"""The runtime computes Shared Attention: its logits are compared with the torch reference.

docs/parity.md has the measured errors (python -m tests.support.parity).
"""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shareatt_export.formats.gguf_reader import read_header
from shareatt_export.llamacpp import runtime
from shareatt_export.llamacpp.engine import Context, Model
from shareatt_export.model.facts import read_facts
from shareatt_export.model.spans import parse_spans, source_map
from tests.support import parity, tiny_models

HEADS = list(tiny_models.HEADS)
ONE_SPAN = parity.SPANS["one span"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parity")


@pytest.mark.parametrize("path", ["plain", "reuse"])
@pytest.mark.parametrize("kv", parity.TOLERANCE)
@pytest.mark.parametrize("spans", parity.SPANS.values(), ids=parity.SPANS)
@pytest.mark.parametrize("heads", HEADS)
def test_runtime_is_the_reference(cases, folder, heads, spans, kv, path):
    case = cases[heads, kv]
    file = case.shared(spans, folder)
    errors = {mode: parity.error(case, file, spans, mode, kv, path) for mode in parity.MODES}
    assert max(errors.values()) <= parity.TOLERANCE[kv], errors


@pytest.mark.parametrize("path", ["recompute", "hybrid"])
@pytest.mark.parametrize("mode", parity.MODES)
@pytest.mark.parametrize("heads", HEADS)
def test_with_flash_attention_it_is_as_good_as_dense(cases, folder, heads, mode, path):
    case = cases[heads, "f32"]
    dense = parity.flash_error_of_dense(case, mode)
    for spans in parity.SPANS.values():
        error = parity.error(case, case.shared(spans, folder), spans, mode, "f32", path)
        assert 0 < error <= 2 * dense, spans


@pytest.mark.parametrize("mode", parity.MODES)
def test_hybrid_has_no_flash_attention_within_spans(cases, folder, mode):
    """With blocks of two, all layers are in a span, so no layer rounds to F16."""
    case = cases["GQA", "f32"]
    error = parity.error(case, case.shared("every:2", folder), "every:2", mode, "f32", "hybrid")
    assert error <= parity.TOLERANCE["f32"]


@pytest.mark.parametrize(("kv", "path"), parity.CACHES)
def test_cache_types_cost_what_they_cost_dense(wide, folder, kv, path):
    dense, shared = parity.cache_errors(wide, folder, kv, path)
    assert min(shared.values()) > 0 and max(shared.values()) <= 2 * dense, shared


def test_quantised_caches_are_rotated(wide):
    """Otherwise the test above would not cover the Hadamard rotations."""
    with Model(parity.lib(), wide.dense) as model, Context(model, True, type_k=8, type_v=8) as context:
        assert "attn_rot_k = 1" in context.log and "attn_rot_v = 1" in context.log


@pytest.mark.parametrize("mutation", parity.MUTATIONS)
@pytest.mark.parametrize("heads", HEADS)
def test_each_mutation_is_caught(cases, folder, heads, mutation):
    error = parity.mutation_error(cases[heads, "f32"], folder, parity.MUTATIONS[mutation])
    assert error > 100 * max(parity.TOLERANCE.values())


def test_a_wrong_map_in_the_runtime_is_caught(cases):
    case = cases["GQA", "f32"]
    expected = case.reference((0, 1, 2, 2, 2, 5, 6, 7))
    assert parity.nmse(parity.logits(case.dense, share=(0, 1, 2, 2, 2, 5, 6, 7)), expected) <= parity.TOLERANCE["f32"]
    assert parity.nmse(parity.logits(case.dense, share=(0, 1, 1, 1, 1, 5, 6, 7)), expected) > 1e-2
    assert parity.nmse(parity.logits(case.dense), expected) > 1e-2


def test_zeroing_the_query_of_the_source_is_seen(cases, folder):
    """llama.cpp's dummy models do not show this mistake. Ours must, or parity would prove nothing."""
    case = cases["GQA", "f32"]
    file = case.shared(ONE_SPAN, folder)
    before = parity.logits(file)
    query = read_header(file).tensors["blk.2.attn_q.weight"]
    with file.open("r+b") as out:
        out.seek(query.offset)
        out.write(bytes(query.n_bytes))
    assert parity.nmse(parity.logits(file), before) > 1e-2


@pytest.mark.parametrize("path", parity.PATHS)
@pytest.mark.parametrize("spans", parity.SPANS.values(), ids=parity.SPANS)
def test_setting_spans_on_the_dense_file_is_the_exported_file(cases, folder, spans, path):
    case = cases["GQA", "f32"]
    share = source_map(parse_spans(spans, tiny_models.N_LAYER), tiny_models.N_LAYER)
    ours = parity.logits(case.dense, path=path, share=share)
    assert np.array_equal(ours, parity.logits(case.shared(spans, folder), path=path))


@pytest.mark.parametrize("path", ["plain", "recompute"])  # flash attention off and on
@pytest.mark.parametrize("kv", parity.TOLERANCE)
def test_dense_logits_are_bit_equal_without_the_patch(cases, folder, built, kv, path):
    """A process can load one library only, so the unpatched one runs in a child process."""
    unpatched = runtime.built_status(patched=False)
    assert unpatched.ready, "run 'shareatt-export runtime build --unpatched'"
    case, out = cases["GQA", kv], folder / "unpatched.npz"
    command = [
        sys.executable,
        "-m",
        "tests.support.unpatched_child",
        built.python,
        unpatched.bin,
        case.dense,
        out,
        kv,
        path,
    ]
    subprocess.run(list(map(str, command)), check=True, cwd=Path(__file__).parents[2])
    stock = np.load(out)
    for mode in parity.MODES:
        assert np.array_equal(stock[mode], parity.logits(case.dense, mode, kv, path)), mode


@pytest.mark.parametrize("path", parity.PATHS)
@pytest.mark.parametrize("spans", parity.SPANS.values(), ids=parity.SPANS)
def test_kv_cache_has_the_planned_size(cases, folder, spans, path):
    """At 8192 cells, the K of a layer is 1 MiB, so the two decimals in llama.cpp's log are exact."""
    file = cases["GQA", "f32"].shared(spans, folder)
    facts = read_facts(read_header(file))
    flash_attn, variables = parity.PATHS[path]
    with (
        parity.environment(variables),
        Model(parity.lib(), file) as model,
        Context(model, flash_attn, n_ctx=8192) as context,
    ):
        (said,) = re.findall(r"llama_kv_cache: size = +([0-9.]+) MiB", context.log)
    assert float(said) * 2**20 == facts.kv_bytes_per_token(facts.attention) * 8192
