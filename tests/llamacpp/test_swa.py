"""Models with sliding-window and full attention: a span shares within each kind, in the KV cache of that kind."""

from pathlib import Path

import pytest

from shareatt_export.errors import RuntimeProblem
from shareatt_export.formats.gguf_reader import read_header
from shareatt_export.llamacpp import runtime
from shareatt_export.llamacpp.engine import Context, Model
from shareatt_export.model.facts import read_facts
from tests.support import conversions, parity, tiny_models
from tests.support.parity import Case

# by architecture: the spans, and their source map
SPANS = {
    "gemma2": ("2-7", (0, 1, 2, 3, 2, 3, 2, 3)),
    "gemma3": ("4-11", (0, 1, 2, 3, 4, 5, 4, 4, 4, 4, 4, 5)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("swa")


@pytest.fixture(scope="module", params=SPANS)
def arch(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def case(arch: str, folder: Path, built: runtime.RuntimeStatus) -> Case:
    model = tiny_models.build_sliding(arch)
    dense = conversions.convert(tiny_models.save(model, folder / arch), folder / f"{arch}-dense.gguf", "f32")
    return Case(model.double(), dense)


@pytest.fixture(scope="module")
def shared(arch: str, case: Case, folder: Path) -> Path:
    return case.shared(SPANS[arch][0], folder)


def test_a_range_shares_within_each_kind(arch, shared):
    facts = read_facts(read_header(shared))
    source_layers = facts.attention.source_layers
    assert source_layers == SPANS[arch][1] and len(set(facts.is_swa)) == 2
    assert all(facts.is_swa[layer] == facts.is_swa[source] for layer, source in enumerate(source_layers))


def test_the_dense_model_is_the_reference(arch, case):
    """Otherwise the following tests would prove nothing about Shared Attention."""
    expected = case.reference(tuple(range(tiny_models.SLIDING[arch])))
    assert parity.nmse(parity.logits(case.dense), expected) <= parity.TOLERANCE["f32"]


@pytest.mark.parametrize("path", parity.PATHS)
@pytest.mark.parametrize("mode", parity.MODES)
def test_runtime_is_the_reference(arch, case, shared, mode, path):
    expected = case.reference(SPANS[arch][1], parity.MODES[mode].sequence)
    allowed = parity.TOLERANCE["f32"] if path in ("plain", "reuse") else 2 * parity.flash_error_of_dense(case, mode)
    assert parity.nmse(parity.logits(shared, mode, path=path), expected) <= allowed


@pytest.mark.parametrize("path", parity.PATHS)
def test_the_window_slides_in_a_cache_of_full_size_too(shared, path):
    flash_attn, variables = parity.PATHS[path]
    with parity.environment(variables), Model(parity.lib(), shared) as model:
        params = {"n_ctx": 512, "n_ubatch": parity.N_UBATCH, "type_k": 0, "type_v": 0}
        with Context(model, flash_attn, **params, swa_full=True) as context:
            full = parity.prefill(context)
        with Context(model, flash_attn, **params, swa_full=False) as context:
            assert parity.nmse(parity.prefill(context), full) <= parity.TOLERANCE["f32"]


@pytest.mark.parametrize("mutation", ["source off by one", "mask skipped", "Q of the source zeroed"])
def test_each_mutation_is_caught(arch, case, shared, mutation):
    expected = case.reference(SPANS[arch][1], kind=parity.MUTATIONS[mutation])
    assert parity.nmse(parity.logits(shared), expected) > 100 * max(parity.TOLERANCE.values())


def test_the_loader_refuses_to_mix_the_kinds(arch, case):
    n_layer = tiny_models.SLIDING[arch]
    with Model(parity.lib(), case.dense) as model, pytest.raises(RuntimeProblem, match="has another attention window"):
        model.share((*range(n_layer - 1), n_layer - 2))
