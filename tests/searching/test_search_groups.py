"""`shareatt-export search --unit group` on the demo model, and the export of what it finds."""

import json
from shutil import copytree

import numpy as np
import pytest
from click.testing import CliRunner

from shareatt_export.cli.search import search_command
from shareatt_export.evaluation.evaluate import evaluate
from shareatt_export.evaluation.request import EvaluateRequest
from shareatt_export.exporting.map_file import read_map
from shareatt_export.fitting.features import feature_reader
from shareatt_export.fitting.observer import observing
from shareatt_export.fitting.ridge import NormalEquations
from shareatt_export.formats.gguf_reader import read_header
from shareatt_export.formats.tensor_copies import float_rows, read_f32
from shareatt_export.formats.texts import read_corpus, read_text
from shareatt_export.llamacpp.token_windows import token_windows
from shareatt_export.model.attention_map import without_layers
from shareatt_export.model.candidate_pairs import candidates
from shareatt_export.model.facts import read_facts
from shareatt_export.plan.cuts import kept_columns
from shareatt_export.plan.projections import projections
from shareatt_export.searching.group_errors import measured_errors
from shareatt_export.searching.group_fits import GroupFits
from shareatt_export.searching.map_cost import MapCosts, unchanged
from shareatt_export.searching.pair_fits import RIDGE
from shareatt_export.searching.recorded_layers import RecordedLayers
from tests.support import dummy_models, tiny_models

HELDOUT = tiny_models.DEMO / "heldout.txt"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(read_text(HELDOUT).content[:20_000])
    return path


SIZE = ["--ctx", 32, "--windows", 4, "--reach", 2, "--fast"]


def search(model, text, folder):
    return ["search", model, "--unit", "group", "--text", text, *SIZE, "--save", "4%", "-o", folder]


@pytest.fixture(scope="module")
def found(demo_dense, text, tmp_path_factory):
    """The folder that a search wrote, and its report."""
    folder = tmp_path_factory.mktemp("found")
    done = CliRunner().invoke(search_command, [*map(str, search(demo_dense, text, folder)[1:]), "--json"])
    assert done.exit_code == 0, done.stderr
    return folder, json.loads(done.stdout)


def test_the_report(found):
    folder, data = found
    dense, best = data["dense"], data["found"]
    assert dense["kl"]["mean"] == 0 < best["kl"]["mean"]
    assert best["kv_bytes_per_token"] <= 0.96 * dense["kv_bytes_per_token"]
    assert best["source_heads"] == data["source_heads"] and len(data["source_heads"]) == 12
    names = [each["name"] for each in data["simple"]]
    assert names == ["KV groups dropped", "KV groups shared", "layers dropped", "layers shared"]
    assert [each["name"] for each in data["quantised"]] == [
        f"{name}, K cache {type_k}" for name in ("dense", "found") for type_k in ("q8_0", "q4_0")
    ]
    assert data["actions"] and all(action.startswith(("group ", "layer ")) for action in data["actions"])
    assert json.loads((folder / "search.json").read_text()) == data
    assert (folder / "pareto.png").read_bytes().startswith(b"\x89PNG")


def test_an_interrupted_search_finds_the_same(run, demo_dense, text, found, tmp_path):
    """Half of the measured costs are lost."""
    folder, data = found
    copytree(folder, tmp_path, dirs_exist_ok=True)
    costs = tmp_path / "search-state" / "costs.json"
    costs.write_text(json.dumps(json.loads(costs.read_text())[::2]))
    arguments = [*search(demo_dense, text, tmp_path), "--force"]
    again = json.loads(run(*arguments, "--json").stdout)
    assert 0 < again["maps_measured"] < data["maps_measured"]
    own = {"maps_measured", "command", "provenance"}
    same = [
        json.loads(json.dumps({key: each[key] for key in each.keys() - own}).replace(str(place), "FOLDER"))
        for each, place in ((again, tmp_path), (data, folder))
    ]
    assert same[0] == same[1]
    shown = " ".join(run(*arguments).stdout.split())
    assert (
        "(0 maps measured, output projections refitted on 4 windows)" in shown and data["actions"][0] in shown
    )  # all in search-state
    assert f"--map {tmp_path / 'search.json'} --refit --text {text} -o OUT.gguf" in shown
    layers = ["search", demo_dense, "--unit", "layer", "--text", text, "--save", "4%", "-o", tmp_path, "--force"]
    assert "is the state of another search (unit)" in run(*layers).error


def test_what_is_found_is_what_is_exported(run, demo_dense, trial_model, found, tmp_path):
    folder, data = found
    sa = tmp_path / "sa.gguf"
    assert run(demo_dense, "--map", folder / "search.json", "-o", sa).status == 0
    facts = read_facts(read_header(sa))
    assert facts.kv_bytes_per_token(facts.attention) == data["found"]["kv_bytes_per_token"]
    windows = token_windows(trial_model.model, read_corpus(HELDOUT), 64, 4)
    map_costs = MapCosts(trial_model, unchanged, windows, tmp_path / "logits", n_ctx=64, n_threads=2)
    quality = map_costs.quality(read_map(folder / "search.json", trial_model.facts.attention))
    done = evaluate(EvaluateRequest(demo_dense, (sa,), read_corpus(HELDOUT), 64, 4, baselines=False))
    assert done.scores[1].kl.value == pytest.approx(quality.kl.value, rel=1e-2) != 0  # eval uses other kernels


def test_costs_of_groups(trial_model, tmp_path):
    """A group that is dropped costs as much as zeros in the columns of the output projection that read its heads."""
    facts = read_facts(trial_model.header)
    windows = token_windows(trial_model.model, read_corpus(HELDOUT), 64, 2)
    map_costs = MapCosts(trial_model, unchanged, windows, tmp_path / "logits", n_ctx=64, n_threads=2)
    output = projections(trial_model.header, facts, 5).output
    weights = read_f32(output).copy()
    found = facts.attention
    for group in facts.attention.groups(5):
        heads, found = found.heads(group), found.with_drop(group)
        weights[:, heads.start * facts.head_dim_v : heads.stop * facts.head_dim_v] = 0
        changes = {output: trial_model.encoded(weights, output.type)}
        expected = map_costs.quality(facts.attention, changes=changes).kl.value
        # the dense model uses flash attention, whose rounding is other than that of the kernels of a map
        assert np.mean(map_costs.costs(found, 0, 2)) == pytest.approx(expected, rel=0.01) != 0


def record(trial_model, built, windows, folder):
    facts, n_ctx = trial_model.facts, len(windows[0])
    with observing(built, trial_model.header.path, facts, n_ctx=n_ctx, n_threads=2) as observer:
        return RecordedLayers(observer, facts, windows, folder, lambda fraction: None)


def test_fitted_projections(trial_model, built, tmp_path):
    """They are what least squares finds on the inputs of W_O in the runtime, where one layer is touched."""
    facts = trial_model.facts
    windows = token_windows(trial_model.model, read_corpus(HELDOUT), 64, 3)
    fits = GroupFits(trial_model, record(trial_model, built, windows, tmp_path), 2)
    _, follower, dropped = facts.attention.groups(5)
    found = facts.attention.with_drop(dropped).with_sources(follower, [4 * 6 + 5, 4 * 6 + 1])
    ((copy, raw),) = fits.changes(found).items()
    columns, weights = kept_columns(facts, found, 5), read_f32(projections(trial_model.header, facts, 5).output)
    assert copy.shape == (len(columns), len(weights)) and len(columns) == 4 * facts.head_dim_v
    equations = NormalEquations.empty(*copy.shape)
    for window in windows:
        dense, features = (features_of_layer(trial_model, each, window) for each in (facts.attention, found))
        equations.add(features[:, columns], dense @ weights.T)
    expected = equations.solved(weights[:, columns].astype(np.float64), RIDGE)
    assert float_rows(raw, copy.type) == pytest.approx(expected, abs=0.02 * np.abs(expected).max())
    assert equations.error(float_rows(raw, copy.type)) < 0.9 * equations.error(weights[:, columns])
    everything = without_layers(found, [5])
    assert fits.changes(everything) == {} == fits.changes(facts.attention)


def features_of_layer(trial_model, attention, window, wanted=5):
    trial_model.change(attention, {})
    found = {}
    sizes = {"n_windows": 1, "n_ctx": 64, "n_threads": 2}
    with feature_reader(trial_model.model, trial_model.bin, trial_model.facts, **sizes) as reader:
        reader.read([window], found.__setitem__)
    return found[wanted]


def test_errors_of_heads(trial_model, built, tmp_path):
    """A dropped head's error is the norm of what it adds to the output; its own attention weights leave none."""
    header, facts = trial_model.header, read_facts(trial_model.header)
    (window,) = token_windows(trial_model.model, read_corpus(HELDOUT), 64, 1)
    recorded = record(trial_model, built, [window], tmp_path)
    errors = measured_errors(recorded, header, facts, candidates(facts, 1), 2, lambda fraction: None)
    features = features_of_layer(trial_model, facts.attention, window, wanted=4)
    weights = read_f32(projections(header, facts, 4).output)
    width = facts.head_dim_v
    expected = [
        np.square(
            features[:, head * width : (head + 1) * width] @ weights[:, head * width : (head + 1) * width].T
        ).sum()
        for head in range(facts.n_head[4])
    ]
    assert errors.dropped[4] == pytest.approx(expected, rel=1e-2)
    assert errors.shared.keys() == set(candidates(facts, 1))
    assert all(found.shape == (6, 6) and found.min() > 0 for found in errors.shared.values())


def test_what_is_refused(run, demo_dense, text, tmp_path):
    group = ["search", demo_dense, "--unit", "group", "--text", text]
    ends = "name one of --save, --kv-bytes, --max-kl and --speedup"
    assert ends in run(*group).error and ends in run(*group, "--save", "10%", "--kv-bytes", 4000).error
    assert "a token takes 4608 already" in run(*group, "--kv-bytes", 4608).error
    assert "--beam belongs to --unit layer" in run(*group, "--save", "10%", "--beam", 2).error
    assert "--speedup belongs to --unit group" in run(*group[:2], "--followers", 2, "--speedup", 1.2).error
    for bad in ("10", "0%", "100%", "x%", "1e1%"):
        assert f"'{bad}' is not a percentage like 10%" in run(*group, "--save", bad).error
    model = tmp_path / "bitnet.gguf"
    dummy_models.make("bitnet", model)
    error = run("search", model, "--unit", "group", "--save", "10%").error
    assert "'bitnet' shares whole layers only" in error and error.endswith("use --unit layer")
    assert "--no-align --no-refit" in run("search", model, "--save", "10%").error  # of a search over layers


def test_other_ends(run, demo_dense, text):
    """Without --unit, KV groups are searched over."""
    arguments = ["search", demo_dense, "--text", text, *SIZE, "--json"]
    faster = json.loads(run(*arguments, "--speedup", 1.04, "--decode-at", 4096).stdout)
    assert faster["predicted_decode"]["depth"] == 4096 and 1.04 <= faster["predicted_decode"]["speedup"] < 1.1
    close = json.loads(run(*arguments, "--max-kl", faster["search_kl"]).stdout)
    assert 0 < close["search_kl"] <= faster["search_kl"]
    assert close["found"]["kv_bytes_per_token"] < close["dense"]["kv_bytes_per_token"]


def test_maps_for_unpatched_llama_cpp(run, demo_dense, text, tmp_path):
    found = tmp_path / "found"
    data = json.loads(
        run("search", demo_dense, "--text", text, *SIZE, "--save", "8%", "--drop-only", "-o", found, "--json").stdout
    )
    assert data["actions"] and all(action.endswith("dropped") for action in data["actions"])
    assert [each["name"] for each in data["simple"]] == ["KV groups dropped", "layers dropped"]
    sa, stock = tmp_path / "sa.gguf", tmp_path / "stock.gguf"
    assert run(demo_dense, "--map", found / "search.json", "-o", sa).status == 0
    assert run("stock", sa, "-o", stock).status == 0
    assert "--drop-only belongs to --unit group" in run("search", demo_dense, "--followers", 2, "--drop-only").error
