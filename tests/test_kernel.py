"""The attention kernel against ggml's operators, on every instruction set that this processor has."""

import pytest

from shareatt_export import runtime

from . import kernel

N_SHAPES = 24


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory, built: runtime.Status) -> dict[tuple[str, str, str], float]:
    """By shape, instruction set and number of threads."""
    lines = kernel.output(kernel.build(tmp_path_factory.mktemp("kernel")), "check")
    return {(shape, simd, threads): float(error) for shape, simd, threads, error in map(str.split, lines)}


def test_the_kernel_is_softmax_of_kq(errors):
    assert len({shape for shape, _, _ in errors}) == N_SHAPES
    for (shape, *where), error in errors.items():
        assert error <= (1e-6 if shape == "f16" else 1e-10), (shape, *where)


def test_threads_and_instruction_sets_are_tried(errors):
    assert {"any"} <= {simd for _, simd, _ in errors} and {threads for _, _, threads in errors} == {"1", "3"}


def test_f16_is_rounded(errors):
    """Else the error of the other shapes would say nothing."""
    assert all(error > 1e-9 for (shape, _, _), error in errors.items() if shape == "f16")
