"""`shareatt-export eval`: against llama-perplexity, which computes the same, and against numpy."""

import json
import math
import re
import subprocess

import numpy as np
import pytest

import shareatt_export
from shareatt_export import runtime
from shareatt_export.evaluate import Request, evaluate, mean
from shareatt_export.texts import Text, read_text

from . import small, tiny

TEXT = read_text(tiny.DEMO / "heldout.txt")
N_CTX, N_WINDOWS = 128, 6


@pytest.fixture(scope="module")
def shared(demo_dense, tmp_path_factory):
    return shareatt_export.export(demo_dense, "6-9", tmp_path_factory.mktemp("shared") / "sa.gguf").files[0]


@pytest.fixture(scope="module")
def beginning(tmp_path_factory):
    """So little text that N_WINDOWS windows are all of it, as llama-perplexity takes them from the start."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT.content[:2600])
    return path


def upstream(patterns: list[str], *arguments: object) -> list[float]:
    """What llama-perplexity says behind each pattern; asked again where it lost a line of its log."""
    command = [runtime.tool("llama-perplexity"), "-c", N_CTX, "--chunks", N_WINDOWS, "-b", N_CTX, *arguments]
    for _ in range(20):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
        found = [re.findall(pattern + r" +([0-9.]+)", done.stdout + done.stderr) for pattern in patterns]
        if all(found):
            return [float(numbers[0]) for numbers in found]
    raise AssertionError(done.stdout + done.stderr)


def test_perplexity_and_kl_are_those_of_llama_perplexity(demo_dense, shared, beginning, tmp_path):
    done = evaluate(Request(demo_dense, (shared,), read_text(beginning), N_CTX, N_WINDOWS, baselines=False))
    assert done.n_windows == N_WINDOWS and done.n_tokens == N_WINDOWS * (N_CTX // 2 - 1)
    base = tmp_path / "base.bin"
    for score, extra in zip(done.scores, (["--save-all-logits", base], []), strict=True):
        (theirs,) = upstream(["Final estimate: PPL ="], "-m", score.subject.model, "-f", beginning, *extra)
        assert score.perplexity == pytest.approx(theirs, rel=1e-4)
    what = ["Mean +KLD:", "Same top p:"]
    kl, top = upstream(what, "-m", shared, "--kl-divergence-base", base, "--kl-divergence", "-f", beginning)
    dense, ours = done.scores
    assert ours.kl.value == pytest.approx(kl, rel=5e-3)  # upstream keeps log probabilities in 16 bits
    assert 100 * ours.same_top == pytest.approx(top, abs=0.3)
    assert dense.kl.value == dense.kl_max == 0 and dense.same_top == 1
    assert ours.kl.value > 0.05 and ours.kl_p99 < ours.kl_max


def test_bits_per_byte(demo_dense, shared, beginning):
    (dense, _) = evaluate(Request(demo_dense, (shared,), read_text(beginning), N_CTX, 1, baselines=False)).scores
    n_tokens = N_CTX // 2 - 1
    assert 1.5 * n_tokens < dense.nll.value * n_tokens / math.log(2) / dense.bits_per_byte < 8 * n_tokens


def test_the_interval_is_over_windows():
    windows = [np.array([1.0, 3.0]), np.array([4.0, 4.0]), np.array([6.0, 6.0])]
    found = mean(windows)
    assert found.value == 4 and found.half == pytest.approx(1.96 * 2 / 3**0.5)
    assert math.isnan(mean(windows[:1]).half)


def test_the_command(run, demo_dense, shared):
    arguments = ["eval", demo_dense, shared, "--ctx", 64, "--windows", 2]
    data = json.loads(run(*arguments, "--json").stdout)
    names = ["dense", "sa.gguf", "dense, K cache q8_0", "dense, K cache q4_0"]
    assert [score["name"] for score in data["scores"]] == names
    assert data["text"]["name"].startswith("Python's documentation") and data["windows"] == 2
    dense, sa, q8_0, q4_0 = data["scores"]
    assert sa["kv_bytes_per_token"] == dense["kv_bytes_per_token"] * 21 / 24
    assert q4_0["kv_bytes_per_token"] < q8_0["kv_bytes_per_token"] < dense["kv_bytes_per_token"]
    assert 0 < q8_0["kl"]["mean"] < q4_0["kl"]["mean"] < sa["kl"]["mean"]
    shown = run(*arguments, "--no-baselines").stdout
    assert "sa.gguf" in shown and "q8_0" not in shown and "confidence interval" in shown


def test_models_of_another_vocabulary(run, demo_dense, tmp_path):
    other = small.write_dense(tmp_path / "other.gguf")
    done = run("eval", demo_dense, other)
    assert done.error == f"Error: {other}: has 32 tokens, {demo_dense} has 2048"


def test_a_text_that_is_too_short(demo_dense, shared):
    with pytest.raises(shareatt_export.ShareattError, match="tokens; a window takes 512"):
        evaluate(Request(demo_dense, (shared,), Text("short", "x = 1")))
