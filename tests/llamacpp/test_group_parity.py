"""The runtime computes maps of KV groups: its logits are compared with the torch reference."""

import re
from pathlib import Path

import pytest

from shareatt_export.formats.gguf_reader import read_header
from shareatt_export.llamacpp.engine import Context, Model
from shareatt_export.model.facts import read_facts
from tests.support import group_parity, parity, tiny_models
from tests.support.group_parity import CASES, MAPS, MUTATIONS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("groups")


@pytest.mark.parametrize("path", ["plain", "reuse"])
@pytest.mark.parametrize("kv", parity.TOLERANCE)
@pytest.mark.parametrize(("heads", "name"), CASES)
def test_runtime_is_the_reference(cases, folder, heads, name, kv, path):
    case, attention = cases[heads, kv], MAPS[heads][name](heads)
    file = group_parity.exported(case, attention, folder)
    errors = {mode: group_parity.error(case, file, attention, mode, kv, path) for mode in parity.MODES}
    assert max(errors.values()) <= parity.TOLERANCE[kv], errors


@pytest.mark.parametrize("path", ["recompute", "hybrid"])
@pytest.mark.parametrize(("heads", "name"), CASES)
def test_with_flash_attention_it_is_as_good_as_dense(cases, folder, heads, name, path):
    case, attention = cases[heads, "f32"], MAPS[heads][name](heads)
    file = group_parity.exported(case, attention, folder)
    for mode in parity.MODES:
        error = group_parity.error(case, file, attention, mode, "f32", path)
        assert error <= 2 * parity.flash_error_of_dense(case, mode), mode


@pytest.mark.parametrize(("kv", "path"), parity.CACHES)
def test_cache_types_cost_what_they_cost_dense(wide, folder, kv, path):
    everyone_computes = wide.reference(tuple(range(tiny_models.N_LAYER)))
    dense = parity.nmse(parity.logits(wide.dense, "several ubatches", kv, path), everyone_computes)
    for name, make in MAPS["GQA"].items():
        attention = make("GQA")
        file = group_parity.exported(wide, attention, folder)
        error = group_parity.error(wide, file, attention, "several ubatches", kv, path)
        assert 0 < error <= 2.5 * dense, name


@pytest.mark.parametrize(("heads", "name"), CASES)
def test_a_map_that_is_tried_out_computes_what_its_export_computes(cases, folder, heads, name):
    case, attention = cases[heads, "f32"], MAPS[heads][name](heads)
    exported = parity.logits(group_parity.exported(case, attention, folder))
    with Model(parity.lib(), case.dense) as model:
        model.share_heads(attention.flat())
        with Context(model, False, n_ctx=512, n_batch=256, n_ubatch=256, type_k=0, type_v=0) as context:
            tried = parity.MODES["prefill"].run(context)
    assert parity.nmse(tried, exported) < 1e-10


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("heads", ["MHA", "GQA"])
def test_the_reference_sees_mistakes(cases, folder, heads, mutation):
    kind, name = MUTATIONS[mutation]
    case, attention = cases[heads, "f32"], MAPS[heads][name](heads)
    wrong = group_parity.expected(case, attention, kind=kind)
    file = group_parity.exported(case, attention, folder)
    assert parity.nmse(parity.logits(file), wrong) > 100 * parity.TOLERANCE["f32"]


@pytest.mark.parametrize(("heads", "name"), CASES)
def test_the_file_has_the_map_and_the_cache_its_bytes(cases, folder, heads, name):
    case, attention = cases[heads, "f32"], MAPS[heads][name](heads)
    facts = read_facts(read_header(group_parity.exported(case, attention, folder)))
    assert facts.attention == attention.in_file_order()
    with Model(parity.lib(), folder / "groups.gguf") as model, Context(model, True, n_ctx=8192) as context:
        (said,) = re.findall(r"llama_kv_cache: size = +([0-9.]+) MiB", context.log)
    assert float(said) * 2**20 == facts.kv_bytes_per_token(facts.attention) * 8192
