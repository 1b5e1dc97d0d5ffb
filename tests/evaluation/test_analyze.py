"""`shareatt-export analyze`: its errors are those of the SA model, and its similarities are those of numpy."""

import json
from pathlib import Path

import numpy as np
import pytest

from shareatt_export.evaluation.analyze import analyze
from shareatt_export.evaluation.request import AnalyzeRequest
from shareatt_export.formats.gguf_reader import read_header
from shareatt_export.formats.texts import read_corpus, read_text
from shareatt_export.llamacpp import runtime
from shareatt_export.llamacpp.engine import Context, Model, Token
from shareatt_export.llamacpp.graph_callback import GraphCallback
from shareatt_export.llamacpp.token_windows import token_windows
from shareatt_export.model.candidate_pairs import candidates
from shareatt_export.model.facts import read_facts
from shareatt_export.model.spans import parse_spans, source_map
from tests.support import dummy_models, parity, small_gguf, tiny_models

N_CTX = 64
TEXT = read_text(tiny_models.DEMO / "heldout.txt")


def seen(model: Path, names: list[str], source_layers: tuple[int, ...] | None = None):
    """Return the named tensors for the first window of the text, by name and layer."""
    found = {}
    lib, bin = parity.lib(), runtime.require().bin
    taps = GraphCallback(
        lib, bin, names, lambda name, layer, values: found.update({(name, layer): values.astype(np.float64)})
    )
    params = {"n_ctx": N_CTX, "n_ubatch": N_CTX, "type_k": 0, "type_v": 0, "cb_eval": taps.callback}
    with Model(lib, model, source_layers) as loaded, Context(loaded, False, **params) as context, taps:
        (tokens,) = token_windows(loaded, read_corpus(TEXT), N_CTX, 1)
        context.decode([Token(token, i) for i, token in enumerate(tokens)])
    return found


@pytest.fixture(scope="module")
def analysis(demo_dense, built):
    return analyze(AnalyzeRequest(demo_dense, TEXT, n_ctx=N_CTX, n_windows=1, reach=4))


@pytest.mark.parametrize("span", ["0:1", "2:5", "6:9", "10:11"])
def test_errors_are_those_of_the_model_that_shares(analysis, demo_dense, span):
    """The input of a first follower is the same in the dense model and in the SA model."""
    n_layer = analysis.facts.n_layer
    (shared,) = parse_spans(span, n_layer)
    follower = shared.followers[0]
    dense = seen(demo_dense, ["ffn_inp", "l_out"])
    ours = seen(demo_dense, ["ffn_inp"], source_map([shared], n_layer))
    residual = dense["l_out", follower - 1]
    (pair,) = [pair for pair in analysis.pairs if (pair.source, pair.follower) == (shared.source, follower)]
    missing = np.linalg.norm(ours["ffn_inp", follower] - dense["ffn_inp", follower])
    assert pair.error == pytest.approx(missing / np.linalg.norm(residual), rel=1e-4)
    attention = np.linalg.norm(dense["ffn_inp", follower] - residual)
    assert pair.drop_error == pytest.approx(attention / np.linalg.norm(residual), rel=1e-4)


def cosine(a, b):
    """Return the mean cosine similarity of the rows, without rows of zeros."""
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return ((a * b).sum(-1) / np.where(norms > 0, norms, 1))[norms > 0].mean()


def test_similarities_are_those_of_numpy(analysis, demo_dense):
    taps = seen(demo_dense, ["kq_soft_max"])
    a, b = (taps["kq_soft_max", layer][0, :, :, :N_CTX] for layer in (3, 6))
    assert analysis.similarity[3, 6] == pytest.approx(cosine(a, b), rel=1e-5)
    assert analysis.similarity_without_first[3, 6] == pytest.approx(cosine(a[:, 1:, 1:], b[:, 1:, 1:]), rel=1e-5)
    assert np.allclose(np.diag(analysis.similarity), 1) and np.allclose(analysis.similarity, analysis.similarity.T)
    (pair,) = [pair for pair in analysis.pairs if (pair.source, pair.follower) == (3, 6)]
    heads = [[cosine(ours, theirs) for ours in a] for theirs in b]
    assert pair.best_heads == tuple(int(np.argmax(row)) for row in heads)


def test_sinks_are_left_away(demo_dense, analysis):
    received = np.mean([w[0, :, :, :N_CTX] for w in seen(demo_dense, ["kq_soft_max"]).values()], axis=(0, 1))
    later = np.array([received[i + 1 :, i].mean() if i + 1 < N_CTX else 0 for i in range(N_CTX)])
    assert analysis.sinks_per_window == (later > 0.1).sum()


def test_kinds_of_attention_do_not_mix(built, tmp_path):
    model = tmp_path / "gemma2.gguf"
    dummy_models.make("gemma2", model)
    assert candidates(read_facts(read_header(model)), 8) == [(0, 2), (1, 3)]


def test_the_command(run, demo_dense, tmp_path):
    arguments = ["analyze", demo_dense, "--ctx", 32, "--windows", 2]
    done = run(*arguments, "-o", tmp_path)
    assert done.status == 0 and "mixture/prose, mixture/code" in done.stdout, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {
        "analysis.json",
        "similarity.png",
        "error.png",
        "report.html",
    }
    assert (tmp_path / "error.png").read_bytes().startswith(b"\x89PNG")
    data = json.loads((tmp_path / "analysis.json").read_text())
    printed = json.loads(run(*arguments, "--json").stdout)
    assert data.pop("provenance").keys() == printed.pop("provenance").keys() and data == printed
    pair = data["pairs"][0]
    assert pair["best_heads"] == np.argmax(pair["head_similarity"], axis=0).tolist()
    assert len(data["similarity"]) == 12 and len(data["pairs"]) == sum(min(layer, 8) for layer in range(12))
    again = run(*arguments, "-o", tmp_path)
    assert again.error == f"Error: {tmp_path / 'analysis.json'}: exists already; use --force to overwrite it"


def test_checkpoints_of_one_model(run, demo_dense, demo_f32, tmp_path):
    size = ["--text", tiny_models.DEMO / "heldout.txt", "--ctx", N_CTX, "--windows", 1]
    done = run("analyze", demo_dense, demo_f32, *size, "-o", tmp_path)
    names = ["analysis-1.json", "analysis-2.json", "training.png", "report.html"]
    assert done.stdout.splitlines()[-4:] == [str(tmp_path / name) for name in names]
    first, second = (json.loads((tmp_path / name).read_text()) for name in names[:2])
    assert first["model"] == str(demo_dense) and second["model"] == str(demo_f32)
    similar = np.array([np.diagonal(each["similarity"], 1).mean() for each in (first, second)])
    assert [f"{each:.3f}" in done.stdout for each in similar] == [True, True]
    both = tmp_path / "both.json"
    both.write_text(run("analyze", demo_dense, demo_f32, *size, "--json").stdout)
    assert json.loads(both.read_text())["analyses"][1]["pairs"] == second["pairs"]
    assert run("report", both, "-o", tmp_path / "both.html").status == 0
    page = (tmp_path / "both.html").read_text()
    assert demo_dense.name in page and demo_f32.name in page
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")
    other = tiny_models.DEMO.with_name("stdlib-3m-mha")
    error = run("analyze", demo_dense, other, *size).error
    assert "has 16 layers" in error and error.endswith("name checkpoints of one model")


def test_what_cannot_be_analysed(run, demo_dense, tmp_path):
    shared = tmp_path / "shared.gguf"
    run(demo_dense, "--spans", "6-9", "-o", shared)
    assert "shares attention already; analyse the dense model" in run("analyze", shared).error
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"\xff\xfe")
    assert run("analyze", demo_dense, "--text", bad).error == f"Error: {bad}: not UTF-8 text"
    bad.write_text("short")
    assert "tokens; a window takes 256" in run("analyze", demo_dense, "--text", bad).error
    encoder = small_gguf.write_dense(tmp_path / "bert.gguf", arch="bert")
    assert "'bert' is an encoder; only language models" in run("analyze", encoder).error
    model = small_gguf.write_dense(tmp_path / "small.gguf")
    assert "has no tokenizer to read a text with" in run("analyze", model).error


def test_a_folder_is_converted(run):
    arguments = [tiny_models.DEMO, "--text", tiny_models.DEMO / "heldout.txt", "--ctx", 32, "--windows", 1, "--json"]
    assert json.loads(run("analyze", *arguments).stdout)["model"] == str(tiny_models.DEMO)


def test_a_folder_that_cannot_be_converted(run, tmp_path):
    assert "not a model: neither a GGUF file nor a folder" in run("analyze", tmp_path).error
