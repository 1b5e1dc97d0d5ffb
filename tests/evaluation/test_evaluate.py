"""`shareatt-export eval`: its scores are those of llama-perplexity."""

import io
import json
import math
import re
import subprocess

import pytest
from rich.console import Console

import shareatt_export
from shareatt_export.cli import evaluate_report, output
from shareatt_export.evaluation import batches
from shareatt_export.evaluation.evaluate import evaluate
from shareatt_export.evaluation.request import EvaluateRequest
from shareatt_export.evaluation.subjects import Q8_0, Subject, baseline
from shareatt_export.formats.texts import Text, read_text
from shareatt_export.llamacpp import runtime
from shareatt_export.model.facts import F16
from shareatt_export.model.spans import parse_spans, source_map
from shareatt_export.model.synthetic import ModelShape
from tests.support import small_gguf, tiny_models

TEXT = read_text(tiny_models.DEMO / "heldout.txt")
N_CTX, N_WINDOWS = 128, 6


@pytest.fixture(scope="module")
def beginning(tmp_path_factory):
    """A text of exactly N_WINDOWS windows, because llama-perplexity takes windows from the start of the text."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT.content[:2600])
    return path


@pytest.fixture(scope="module")
def more(tmp_path_factory):
    """A longer text with the same beginning.

    llama-perplexity may lose the last lines of its log, so it gets more windows.
    """
    path = tmp_path_factory.mktemp("text") / "more.txt"
    path.write_text(TEXT.content[:6000])
    return path


def upstream(pattern: str, *arguments: object) -> list[float]:
    """Return the numbers that llama-perplexity printed after N_WINDOWS windows."""
    command = [runtime.tool("llama-perplexity"), "-c", N_CTX, "--chunks", 2 * N_WINDOWS, "-b", N_CTX, *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    found = re.search(pattern.replace("#", "([0-9.]+)"), done.stdout + done.stderr, re.MULTILINE)
    assert found, done.stdout + done.stderr
    return list(map(float, found.groups()))


def test_perplexity_and_kl_are_those_of_llama_perplexity(demo_dense, shared, beginning, more, tmp_path):
    done = evaluate(EvaluateRequest(demo_dense, (shared,), read_text(beginning), N_CTX, N_WINDOWS, baselines=False))
    assert done.n_windows == N_WINDOWS and done.n_tokens == N_WINDOWS * (N_CTX // 2 - 1)
    base = tmp_path / "base.bin"
    for score, extra in zip(done.scores, (["--save-all-logits", base], []), strict=True):
        (theirs,) = upstream(rf"\[{N_WINDOWS}\]#", "-m", score.subject.model, "-f", more, *extra)
        assert score.perplexity == pytest.approx(theirs, rel=1e-4)
    columns = rf"^ +{N_WINDOWS} +[^±]+± +[0-9.]+ +# ±[^±]+ # ±[^±]+±[^±]+% +# ±"  # PPL, log ratio, KL, change, same top
    log_ratio, kl, top = upstream(columns, "-m", shared, "--kl-divergence-base", base, "--kl-divergence", "-f", more)
    dense, ours = done.scores
    assert ours.kl.value == pytest.approx(kl, rel=5e-3)  # llama-perplexity stores log probabilities in 16 bits
    assert ours.log_ratio.value == pytest.approx(log_ratio, abs=1e-3)
    assert 100 * ours.same_top.value == pytest.approx(top, abs=0.3)
    assert dense.kl.value == dense.kl_max == 0 and dense.same_top.value == 1
    assert ours.kl.value > 0.05 and ours.kl_p99 < ours.kl_max


def test_few_logits_in_memory_give_the_same_scores(demo_dense, shared, beginning, monkeypatch):
    """With a vocabulary of 262,000 tokens, a batch has fewer tokens than a window."""
    request = EvaluateRequest(demo_dense, (shared,), read_text(beginning), N_CTX, 2, baselines=False)
    whole = evaluate(request)
    monkeypatch.setattr(batches, "MAX_LOGITS", 50 * 2048)
    assert batches.most_outputs(2048) == 50
    parts = evaluate(request)
    assert parts.scores[1].kl.value == pytest.approx(whole.scores[1].kl.value, rel=2e-2)
    assert parts.scores[0].perplexity == pytest.approx(whole.scores[0].perplexity, rel=2e-3)
    assert parts.n_tokens == whole.n_tokens


def test_bits_per_byte(demo_dense, shared, beginning):
    (dense, _) = evaluate(
        EvaluateRequest(demo_dense, (shared,), read_text(beginning), N_CTX, 1, baselines=False)
    ).scores
    n_tokens = N_CTX // 2 - 1
    assert 1.5 * n_tokens < dense.nll.value * n_tokens / math.log(2) / dense.bits_per_byte < 8 * n_tokens


# ---------------------------------------------------------------- K caches of equal bytes


@pytest.mark.parametrize(
    "n_layer, head_dim, spans, expected",
    [
        (12, 64, "", "F16"),  # no layer shares
        (12, 64, "0-1", "Q8_0"),
        (12, 64, "every:2", "Q5_1"),
        (32, 64, "0-21", "Q5_0"),  # exactly as many bytes
        (12, 64, "every:3", "Q4_1"),
        (24, 64, "0-17", "IQ4_NL"),
        (12, 64, "every:4", None),
        (12, 48, "0-1", None),  # not a multiple of the block size 32
    ],
)
def test_the_baseline_is_the_best_that_takes_no_more_bytes(n_layer, head_dim, spans, expected):
    facts = ModelShape(n_layer, 256, 4, 2, head_dim, 256, 32).facts()
    source_layers = source_map(parse_spans(spans, n_layer), n_layer) if spans else facts.attention.source_layers
    shared = facts.kv_bytes_per_token(facts.of_layers(source_layers))
    found = baseline(Subject("dense", None, facts), shared)
    assert (found and found.type_k.name) == expected
    assert found is None or found.kv_bytes_per_token <= shared


def test_each_sa_model_gets_the_baseline_of_its_bytes(demo_dense, shared, beginning, tmp_path):
    half = shareatt_export.export(demo_dense, "every:2", tmp_path / "half.gguf").files[0]
    most = shareatt_export.export(demo_dense, "0-11", tmp_path / "most.gguf").files[0]
    files = (half, shared, most)
    done = evaluate(EvaluateRequest(demo_dense, files, read_text(beginning), N_CTX, 2, combined=True, weights=False))
    assert [other.name for other in done.subjects.others] == ["half.gguf", "sa.gguf", "most.gguf"]
    q5_1, q8_0, none = done.subjects.baselines
    assert (q5_1.name, q8_0.name, none) == ("dense, K cache q5_1", "dense, K cache q8_0", None)
    names = ["dense", *(file.name for file in files), *(f"{file.name}, K cache q8_0" for file in files)]
    by_name = {score.subject.name: score for score in done.scores}
    assert list(by_name) == [*names, q5_1.name, q8_0.name]
    for other, found in zip(done.subjects.others[:2], done.subjects.baselines, strict=False):
        assert found.kv_bytes_per_token <= other.kv_bytes_per_token < by_name["dense"].subject.kv_bytes_per_token
    assert 0 < by_name[q8_0.name].kl.value < by_name[q5_1.name].kl.value < by_name["sa.gguf"].kl.value
    both, alone = by_name["sa.gguf, K cache q8_0"], by_name["sa.gguf"]
    assert (both.subject.type_k, alone.subject.type_k) == (Q8_0, F16)
    assert both.subject.kv_bytes_per_token < alone.subject.kv_bytes_per_token and both.nll != alone.nll


def test_files_of_the_same_name_keep_their_folders(demo_dense, shared, beginning, tmp_path):
    other = shareatt_export.export(demo_dense, "0-1", tmp_path / shared.name).files[0]
    done = evaluate(EvaluateRequest(demo_dense, (shared, other), read_text(beginning), 16, 1, baselines=False))
    assert [score.subject.name for score in done.scores] == ["dense", str(shared), str(other)]


# ---------------------------------------------------------------- several texts


def test_each_text_has_scores_of_its_own(run, demo_dense, shared, tmp_path):
    """They are those of a measurement of that text alone, and their mean is the score of all."""
    code, licence = tmp_path / "code.txt", tiny_models.DEMO / "LICENSE"
    code.write_text(TEXT.content[:6000])
    arguments = ["eval", demo_dense, shared, "--ctx", 64, "--no-baselines", "--json"]
    both = json.loads(run(*arguments, "--text", code, "--text", licence, "--windows", 5).stdout)
    assert [(each["name"], each["windows"]) for each in both["texts"]] == [(str(code), 3), (str(licence), 2)]
    for each in both["texts"]:
        alone = json.loads(run(*arguments, "--text", each["name"], "--windows", each["windows"]).stdout)
        assert each["models"][1]["kl"]["mean"] == pytest.approx(alone["scores"][1]["kl"]["mean"], rel=1e-6)
        assert each["models"][0]["perplexity"] == pytest.approx(alone["scores"][0]["perplexity"], rel=1e-6)
        assert alone["texts"] == []
    kl = [each["models"][1]["kl"]["mean"] for each in both["texts"]]
    assert both["scores"][1]["kl"]["mean"] == pytest.approx((3 * kl[0] + 2 * kl[1]) / 5, rel=1e-6)
    assert kl[0] != pytest.approx(kl[1], rel=0.05)


def test_a_model_that_was_fitted_to_the_text_is_named(run, demo_dense, tmp_path):
    text, other, fitted = (tmp_path / name for name in ("text.txt", "other.txt", "fitted.gguf"))
    text.write_text(TEXT.content[:20_000])
    other.write_text(TEXT.content[-3000:])
    assert run(demo_dense, "--spans", "6-7", "--align", "--text", text, "-o", fitted).status == 0
    arguments = ["eval", demo_dense, fitted, "--ctx", 64, "--windows", 1, "--no-baselines"]
    assert "fitted to this very text" in run(*arguments, "--text", text).stdout
    assert "fitted to this very text" not in run(*arguments, "--text", other).stdout


# ---------------------------------------------------------------- the command


def test_the_command(run, demo_dense, shared, tmp_path):
    arguments = ["eval", demo_dense, shared, "--ctx", 160, "--windows", 2, "--no-weights"]
    done = run(*arguments, "--json", "--plot", tmp_path / "out.png")
    data = json.loads(done.stdout)
    names = ["dense", "sa.gguf", "dense, K cache q8_0"]
    assert [score["name"] for score in data["scores"]] == names
    assert data["text"]["name"].startswith("mixture/prose, mixture/code") and data["windows"] == 2
    dense, sa, q8_0 = data["scores"]
    assert sa["kv_bytes_per_token"] == dense["kv_bytes_per_token"] * 21 / 24
    assert q8_0["kv_bytes_per_token"] < sa["kv_bytes_per_token"]
    assert data["baselines"] == [{"name": "sa.gguf", "baseline": "dense, K cache q8_0"}] and data["tasks"] == []
    assert [(bucket["first"], bucket["last"]) for bucket in data["positions"]] == [(1, 127), (128, 159)]
    assert [model["name"] for model in data["positions"][0]["models"]] == names
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG\r\n")
    shown = run(*arguments, "--no-baselines", "--positions").stdout
    assert "sa.gguf" in shown and "q8_0" not in shown and "confidence interval" in shown
    rows = [" ".join(line.split()) for line in shown.splitlines()]
    at = data["positions"][1]["models"][1]
    ratio = math.exp(at["log_perplexity_ratio"]["mean"])
    assert any(row.startswith(f"128-159 {math.exp(at['nll']['mean']):.2f} {ratio:.3f} ± ") for row in rows)


def test_one_window_has_no_interval_and_is_json_all_the_same(run, demo_dense, shared):
    done = run("eval", demo_dense, shared, "--ctx", 16, "--windows", 1, "--no-baselines", "--json")
    data = json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert all(score["kl"]["half_ci95"] is None and score["kl"]["mean"] is not None for score in data["scores"])


def test_matplotlib_is_asked_for_before_anything_is_measured(run, demo_dense, shared, tmp_path, monkeypatch):
    monkeypatch.setattr(output, "find_spec", lambda name: None)
    done = run("eval", demo_dense, shared, "--plot", tmp_path / "out.png")
    assert done.error == "Error: matplotlib is needed for --plot; pip install 'shareatt-export[plot]'"
    assert done.stderr.count("\n") == 1


def test_models_of_another_vocabulary(run, demo_dense, tmp_path):
    other = small_gguf.write_dense(tmp_path / "other.gguf")
    done = run("eval", demo_dense, other)
    assert done.error == f"Error: {other}: has 32 tokens, {demo_dense} has 2048"


def test_a_text_that_is_too_short(demo_dense, shared):
    with pytest.raises(shareatt_export.ShareattError, match="tokens; a window takes 512"):
        evaluate(EvaluateRequest(demo_dense, (shared,), Text("short", "x = 1")))


def test_the_dense_model_may_be_a_folder(run, shared):
    scores = json.loads(run("eval", tiny_models.DEMO, shared, "--ctx", 64, "--windows", 1, "--json").stdout)["scores"]
    folder = str(tiny_models.DEMO)
    assert [score["model"] for score in scores] == [folder, str(shared), folder, folder, folder]
    assert [score["weights"] for score in scores] == [None, None, None, "Q4_K_M", "Q3_K_M"]


@pytest.mark.parametrize("width", [80, 120])
def test_no_name_and_no_number_is_cut(demo_dense, shared, tmp_path, width):
    sa = tmp_path / "Stdlib-5.0M-SA6-9-v1.0-BF16.gguf"
    sa.symlink_to(shared)
    tasks = tmp_path / "a-long-name-of-tasks.jsonl"
    tasks.write_text('{"prompt": "import", "choices": [" os", " x"], "answer": 0}\n')
    done = evaluate(EvaluateRequest(demo_dense, (sa,), TEXT, 64, 2, weights=False, drop=True, tasks=(tasks,)))
    console = Console(file=io.StringIO(), width=width)
    evaluate_report.show(done, True, console)
    shown = console.file.getvalue()
    assert "…" not in shown and max(map(len, shown.splitlines())) <= width
    assert shown.count("perplexity") > 2 and ("KL p99" in shown) == (width == 120)
    for score in done.scores:
        assert f"{score.kl.value:.2g} ± {score.kl.half:.1g}" in shown and f"{score.file_bytes:,}" in shown
