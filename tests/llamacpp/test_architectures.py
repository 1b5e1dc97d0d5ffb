"""Every supported architecture, checked in its running graph: a dozen of them, and all with --full."""

from pathlib import Path

import numpy as np
import pytest

from shareatt_export.errors import Unsupported
from shareatt_export.llamacpp import runtime
from shareatt_export.model.architectures import ARCHITECTURES, REFUSED
from tests.support import architecture_proofs, dummy_models, graph_taps, parity, small_gguf

# split and fused, with biases and norms, sinks, soft caps, experts, ALiBi, sliding and chunked, an encoder
DOZEN = [
    "bert",
    "bloom",
    "falcon",
    "gemma2",
    "gpt-oss",
    "gptneox",
    "granitemoe",
    "llama4",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen3moe",
    "step35",
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "arch" in metafunc.fixturenames and metafunc.function in BY_ARCHITECTURE:
        metafunc.parametrize("arch", ARCHITECTURES if metafunc.config.getoption("--full") else DOZEN)


def test_a_follower_takes_the_weights_of_its_source(arch: str, built: runtime.RuntimeStatus, tmp_path: Path):
    proof = architecture_proofs.prove(arch, tmp_path)
    assert max(proof.product, proof.value) <= architecture_proofs.PRODUCT
    assert proof.own_weights >= architecture_proofs.DIFFERENT and proof.dense >= architecture_proofs.DIFFERENT
    flash = 2 * proof.dense_flash
    # ggml's GELU uses a table of F16 values, so the rounding error is larger than that of F32
    assert proof.paths["reuse"] <= (1e-7 if ARCHITECTURES[arch].causal else flash)
    assert proof.paths["recompute"] <= flash


def test_a_temperature_that_only_followers_would_have_used(built: runtime.RuntimeStatus, monkeypatch, tmp_path: Path):
    one_class = {"attention.sliding_window": None, "attention.sliding_window_pattern": 8}
    monkeypatch.setitem(dummy_models.SPECIAL, "llama4", one_class)  # Llama 4 scales Q in the last of its 4 layers
    assert architecture_proofs.prove("llama4", tmp_path).product <= architecture_proofs.PRODUCT


@pytest.mark.parametrize("arch", ["deepseek2", "qwen3next", "gemma4", "openelm"])
def test_an_architecture_that_cannot_share_is_refused_with_the_reason(arch, run, tmp_path):
    dense = small_gguf.write_dense(tmp_path / "dense.gguf", arch=arch)
    error = run(dense, "--spans", "6-9", "-o", tmp_path / "out.gguf").error
    assert f"'{arch}' is not supported: {REFUSED[arch]}" in error and "(supported: afmoe, apertus" in error


def test_groups_follow_and_are_dropped(arch: str, built: runtime.RuntimeStatus, tmp_path: Path):
    """A map of KV groups: what each head computes, read from the graph; architectures with whole layers only refuse."""
    if (reason := ARCHITECTURES[arch].layers_only) is not None:
        with pytest.raises(Unsupported, match="shares whole layers only") as error:
            architecture_proofs.prove_groups(arch, tmp_path)
        assert reason in str(error.value)
        return
    proof = architecture_proofs.prove_groups(arch, tmp_path)
    assert (
        max(proof.product, proof.tried) <= architecture_proofs.PRODUCT and proof.dense >= architecture_proofs.DIFFERENT
    )
    flash = 2 * proof.dense_flash
    assert proof.paths["reuse"] <= (1e-7 if ARCHITECTURES[arch].causal else flash) and proof.paths["recompute"] <= flash


def test_the_dense_model_may_use_the_kernels(arch: str, built: runtime.RuntimeStatus, tmp_path: Path):
    """They stand in for flash attention, which Grok cannot use; an encoder without a cache keeps it."""
    dense, causal = tmp_path / "dense.gguf", ARCHITECTURES[arch].causal
    dummy_models.make(arch, dense)
    plain, flash = (graph_taps.run(dense, path, causal).output for path in ("plain", "recompute"))
    with parity.environment({"LLAMA_SHARED_ATTN_DENSE": "1"}):
        found = graph_taps.run(dense, "reuse", causal).output
    used = arch == "llama-embed" or (causal and arch != "grok")
    assert np.array_equal(found, flash) != used
    assert not used or parity.nmse(found, plain) <= 1e-7


BY_ARCHITECTURE = (
    test_a_follower_takes_the_weights_of_its_source,
    test_groups_follow_and_are_dropped,
    test_the_dense_model_may_use_the_kernels,
)
