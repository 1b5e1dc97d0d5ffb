"""Models of many transformers families, converted by the real converter: the runtime against the torch reference."""

from pathlib import Path

import pytest

from shareatt_export.formats.gguf_reader import read_header
from shareatt_export.llamacpp import runtime
from shareatt_export.model.facts import read_facts
from tests.support import model_families, parity
from tests.support.model_families import FAMILIES
from tests.support.parity import Case

SOME = ["qwen3_moe", "gemma2", "stablelm", "smollm3"]  # experts, sliding, biases and partial rope, layers without rope


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "family" in metafunc.fixturenames:
        every = metafunc.config.getoption("--full")
        metafunc.parametrize("family", FAMILIES if every else SOME, scope="module")


@pytest.fixture(scope="module")
def case(family: str, tmp_path_factory: pytest.TempPathFactory, built: runtime.RuntimeStatus) -> Case:
    return model_families.make_case(family, tmp_path_factory.mktemp(family))


def test_the_runtime_is_the_reference(family: str, case: Case, tmp_path: Path):
    dense_error = parity.nmse(parity.logits(case.dense), model_families.reference(case))
    assert dense_error <= parity.TOLERANCE["f32"]  # otherwise the rest would prove nothing
    shared = case.shared(FAMILIES[family].spans, tmp_path)
    source_layers = read_facts(read_header(shared)).attention.source_layers
    expected = model_families.reference(case, source_layers)
    assert parity.nmse(parity.logits(shared), expected) <= parity.TOLERANCE["f32"]
    flash = parity.flash_error_of_dense(case, "prefill")
    for path in ("reuse", "recompute"):
        assert parity.nmse(parity.logits(shared, path=path), expected) <= 2 * max(flash, parity.TOLERANCE["f32"])
    for mutation in ("source off by one", "Q of the source zeroed"):
        wrong = model_families.reference(case, source_layers, parity.MUTATIONS[mutation])
        assert parity.nmse(parity.logits(shared), wrong) > 100 * parity.TOLERANCE["f16"]
