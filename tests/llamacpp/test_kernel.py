"""The attention kernels against the operators of ggml, with every instruction set of this processor."""

import pytest

from shareatt_export.llamacpp import runtime
from tests.support import kernel

N_SHAPES = 28


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory, built: runtime.RuntimeStatus) -> dict[tuple[str, ...], float]:
    """The errors by shape, kernel, instruction set and number of threads."""
    lines = kernel.output(kernel.build(tmp_path_factory.mktemp("kernel")), "check")
    return {tuple(case): float(error) for *case, error in map(str.split, lines)}


@pytest.mark.parametrize("what", ["weights", "product", "fused"])
def test_the_kernels_are_the_operators(errors, what):
    """One kernel computes softmax(QK), one the product with V, and one both at once."""
    errors = {case: error for case, error in errors.items() if case[1] == what}
    assert len({shape for shape, *_ in errors}) == N_SHAPES
    for (shape, *where), error in errors.items():
        assert error <= (1e-6 if (shape, what) == ("f16", "weights") else 1e-10), (shape, *where)


def test_threads_and_instruction_sets_are_tried(errors):
    assert {"any"} <= {simd for _, _, simd, _ in errors} and {threads for *_, threads in errors} == {"1", "3"}


def test_f16_is_rounded(errors):
    """Otherwise the errors of the other shapes would prove nothing."""
    assert all(error > 1e-9 for (shape, what, *_), error in errors.items() if (shape, what) == ("f16", "weights"))
