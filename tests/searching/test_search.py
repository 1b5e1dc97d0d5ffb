"""`shareatt-export search` and `--spans auto` on the demo model."""

import json

import pytest

import shareatt_export
from shareatt_export.formats.gguf_reader import read_header
from shareatt_export.formats.texts import read_text
from shareatt_export.model.facts import read_facts
from shareatt_export.searching import search as finder
from tests.support import conversions, dummy_models, tiny_models

HELDOUT = read_text(tiny_models.DEMO / "heldout.txt")


# ---------------------------------------------------------------- a model


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(HELDOUT.content[:40_000])
    return path


def small(text):
    return ["--text", text, "--ctx", 64, "--windows", 4, "--reach", 2]


def test_the_command(run, demo_dense, text, tmp_path):
    arguments = ["search", demo_dense, *small(text), "--followers", 2, "-o", tmp_path]
    data = json.loads(run(*arguments, "--json").stdout)
    assert [point["followers"] for point in data["path"]] == [0, 1, 2]
    assert data["path"][0]["kl"]["mean"] == 0 < data["path"][1]["kl"]["mean"]
    names = [point["name"].split(":")[0] for point in data["baselines"]]
    assert names == ["late span", "every", "every", "every", "dense, K cache q8_0", "dense, K cache q4_0"]
    late, every2, *_ = data["baselines"]
    assert late["name"] == "late span: 8-10" and data["path"][2]["kl"]["mean"] < every2["kl"]["mean"]
    kept = data["path"][0]["kv_bytes_per_token"]
    assert data["dropped"]["kv_bytes_per_token"] == kept * 10 / 12 < data["path"][2]["kv_bytes_per_token"]
    assert data["command"].endswith(f"--spans {data['spans']} --align --refit --text {text} -o OUT.gguf")
    assert json.loads((tmp_path / "search.json").read_text()) == data
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert "exists already" in run(*arguments).error
    again = json.loads(run(*arguments, "--json", "--force").stdout)
    assert again["maps_measured"] == 0 < data["maps_measured"]  # all in search-state.json
    assert again["spans"] == data["spans"] and again["search_kl"] == data["search_kl"]
    other = run(*arguments, "--force", "--no-refit")
    assert other.error.endswith("is the state of another search (refit); remove it or name another folder")
    shown = run(*arguments, "--force").stdout
    assert "no attention in these layers" in shown and "maps measured" in shown and "--spans" in shown


def test_budgets(run, demo_dense, text):
    arguments = ["search", demo_dense, *small(text), "--json", "--no-align", "--no-refit"]  # so of layers
    bytes_of = json.loads(run(*arguments, "--kv-bytes", 4300).stdout)
    assert bytes_of["path"][-1]["kv_bytes_per_token"] <= 4300 < bytes_of["path"][-2]["kv_bytes_per_token"]
    limit = 1.5 * max(bytes_of["search_kl"], 1e-3)
    kl = json.loads(run(*arguments, "--max-kl", limit).stdout)
    assert kl["search_kl"] <= limit and len(kl["path"]) >= 2
    fast = json.loads(run(*arguments, "--followers", 3, "--fast").stdout)
    assert fast["maps_measured"] == 4 and fast["path"][-1]["followers"] == 3
    saved = json.loads(run(*arguments, "--save", "7%", "--fast").stdout)["path"]
    assert saved[-1]["kv_bytes_per_token"] <= 0.93 * 4608 < saved[-2]["kv_bytes_per_token"]


def test_what_is_refused(run, demo_dense, text, tmp_path):
    search = ["search", demo_dense, "--unit", "layer", "--text", text]
    assert "name one of --followers, --max-kl, --kv-bytes and --save" in run(*search).error
    assert "name one of" in run(*search, "--followers", 1, "--max-kl", 1).error
    assert "at most 11 layers could follow" in run(*search, "--followers", 12).error
    assert "a token takes 2496 at least" in run(*search, "--kv-bytes", 100).error
    assert "a search needs 8" in run(*search, "--followers", 1, "--ctx", 4096).error
    sa = shareatt_export.export(demo_dense, "6-9", tmp_path / "sa.gguf").files[0]
    assert "a dense language model is needed" in run("search", sa, "--followers", 1).error


def test_dropping_that_is_as_good_is_said():
    from types import SimpleNamespace as Some

    def point(kl):
        return Some(quality=Some(kl=Some(value=kl)))

    def result(dropped):
        return finder.SearchResult(None, None, None, (), point(0.2), dropped, (), {}, 0.0, 0, 0)  # type: ignore[arg-type]

    for kl, expected in ((0.1, True), (0.2, True), (0.3, False)):
        assert result(point(kl)).dropping_is_as_good is expected
    assert not result(None).dropping_is_as_good


def test_spans_auto(run, demo_dense, tmp_path):
    out, text = tmp_path / "auto.gguf", tmp_path / "text.txt"
    text.write_text(HELDOUT.content[:8_000])
    arguments = [demo_dense, "--spans", "auto", "--text", text, "--fast"]
    dry = json.loads(run(*arguments, "--followers", 2, "--dry-run", "--json").stdout)
    data = json.loads(run(*arguments, "--followers", 2, "-o", out, "--json").stdout)
    assert data["spans"] == dry["spans"] and sum(len(span["followers"]) for span in data["spans"]) == 2
    assert read_facts(read_header(out)).attention.source_layers == tuple(data["source_layers"])
    assert "belong together" in run(*arguments, "-o", tmp_path / "x.gguf").error
    assert "belong together" in run(demo_dense, "--spans", "6-9", "--followers", 2, "--dry-run").error
    assert "goes without --drop and --source" in run(*arguments, "--save", "4%", "--drop", 3, "--dry-run").error
    groups = run(*arguments, "--save", "4%", "--refit", "-o", tmp_path / "groups.gguf", "--json")
    assert groups.status == 0, groups.error
    facts = read_facts(read_header(tmp_path / "groups.gguf"))
    assert facts.attention.source_layers is None  # the default is a search over KV groups
    saved = facts.kv_bytes_per_token(facts.attention) / facts.kv_bytes_per_token(facts.dense_attention)
    assert 0.8 < saved <= 0.96
    checkpoint = run(tiny_models.DEMO, *arguments[1:], "--followers", 2, "--dry-run")
    assert "a dry run of a checkpoint reads no weights" in checkpoint.error


def test_models_whose_layers_slide_by_turns(run, built, text, tmp_path):
    """Blocks of two would pair layers of different kinds, so there is no such baseline."""
    source = tiny_models.save(tiny_models.build_sliding("gemma2"), tmp_path / "gemma")
    dense = conversions.convert(source, tmp_path / "gemma.gguf")
    done = run("search", dense, *small(text)[:-2], "--followers", 2, "--fast", "--json")
    assert done.status == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["path"][-1]["followers"] == 2
    assert all((layer - source) % 2 == 0 for layer, source in enumerate(data["source_layers"]))
    assert "every:2" not in [point["name"].split(": ")[0] for point in data["baselines"]]


def test_heads_behind_a_norm_are_searched_without_fits(run, built, tmp_path):
    model = tmp_path / "bitnet.gguf"
    dummy_models.make("bitnet", model)
    error = run("search", model, "--followers", 1).error
    assert "so the heads cannot be moved, which a search that fits weights needs; add --no-align --no-refit" in error
