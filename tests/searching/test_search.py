"""`shareatt-export search`: its parts against brute force, its figures against eval, and the command."""

import itertools
import json

import numpy as np
import pytest

import shareatt_export
from shareatt_export.errors import BadInput
from shareatt_export.evaluation.evaluate import EvaluateRequest, evaluate
from shareatt_export.exporting import convert
from shareatt_export.fitting.trial_model import TrialModel
from shareatt_export.formats.gguf_header import read_header
from shareatt_export.formats.texts import read_text
from shareatt_export.llamacpp.token_windows import token_windows
from shareatt_export.model.candidate_pairs import candidates
from shareatt_export.model.facts import read_facts
from shareatt_export.model.spans import followers, parse_spans, source_map, spans_of
from shareatt_export.searching import search as finder
from shareatt_export.searching.beam import BeamSearch, CostedMap, Settings, additions, guess, with_follower
from shareatt_export.searching.cost_cache import CostCache
from shareatt_export.searching.map_cost import MapCosts
from shareatt_export.searching.pair_fits import PairFit
from tests.support import dummy_models, tiny_models

HELDOUT = read_text(tiny_models.DEMO / "heldout.txt")
N_LAYER = 6


def every_map(n_layer, n, reach=8):
    """All source maps with n followers."""
    choices = (range(max(0, layer - reach), layer + 1) for layer in range(n_layer))
    for found in itertools.product(*choices):
        if len(followers(found)) == n and all(found[source] == source for source in found):
            yield found


def pair_errors(seed, n_layer=N_LAYER):
    rng = np.random.default_rng(seed)
    return {(source, layer): float(rng.random()) for layer in range(n_layer) for source in range(layer)}


def is_contiguous(found):
    return all(span.followers == tuple(range(span.source + 1, span.followers[-1] + 1)) for span in spans_of(found))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", range(1, N_LAYER))
def test_the_first_guess_is_the_cheapest_of_all_contiguous_maps(seed, n):
    errors = pair_errors(seed)

    def total(found):
        return sum(errors[found[layer], layer] ** 2 for layer in followers(found))

    found = guess(N_LAYER, errors, n)
    assert is_contiguous(found) and len(followers(found)) == n
    assert total(found) == pytest.approx(min(map(total, filter(is_contiguous, every_map(N_LAYER, n)))))


def test_no_guess_where_pairs_are_out_of_reach():
    assert guess(4, {(0, 1): 0.1, (1, 2): 0.1}, 2) is None
    assert guess(4, {(0, 1): 0.1, (1, 2): 0.2}, 1) == (0, 0, 2, 3)


def test_additions_leave_sources_and_followers_alone():
    errors = pair_errors(0, 5)
    for found in additions((0, 0, 2, 2, 4), errors):
        assert len(followers(found)) == 3 and all(found[source] == source for source in found)
        assert found[:4] == (0, 0, 2, 2) and found[4] in (0, 2)


def crooked(errors, seed):
    """A cost that pairs do not add up to: neighbours make each other worse."""
    rng = np.random.default_rng(seed)
    together = rng.random((N_LAYER, N_LAYER))

    def cost(found):
        layers = followers(found)
        alone = sum(errors[found[layer], layer] for layer in layers)
        return alone + sum(together[a, b] for a, b in itertools.combinations(layers, 2))

    return cost


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_search_comes_close_to_brute_force(n):
    """With every way followed up, it finds the best of all maps; with the usual few, nearly always."""
    found_best = 0
    for seed in range(20):
        errors = pair_errors(seed)
        cost = crooked(errors, seed)
        best = min(map(cost, every_map(N_LAYER, n)))
        for settings in (Settings(beam=1000, candidates=1000, rounds=9), Settings()):
            search = BeamSearch(N_LAYER, errors, cost, settings)
            path = search.path(lambda step: step.n_followers >= n)
            assert [step.n_followers for step in path] == list(range(n + 1))
            step = search.exchanged(path[-1])
            assert step.n_followers == n and step.cost == pytest.approx(cost(step.source_layers))
            assert step.cost <= path[-1].cost
        found_best += step.cost == pytest.approx(best)
    assert found_best >= 15


@pytest.mark.parametrize("seed", range(5))
def test_exchanges_better_a_bad_map(seed):
    errors = pair_errors(seed)
    cost = crooked(errors, seed)
    worst = max(every_map(N_LAYER, 2), key=cost)
    search = BeamSearch(N_LAYER, errors, cost, Settings())
    search.path(lambda step: step.n_followers >= 1)
    assert search.exchanged(CostedMap(worst, cost(worst))).cost < cost(worst) / 2


def test_costs_are_remembered(tmp_path):
    path, asked = tmp_path / "state.json", []

    def cost(found):
        asked.append(found)
        return len(asked) / 10

    first = CostCache(path, {"text": "a"}, cost)
    assert first((0, 0)) == first((0, 0)) == 0.1 and first((0, 1)) == 0.2
    again = CostCache(path, {"text": "a"}, cost)
    assert again((0, 1)) == 0.2 and again((0, 0)) == 0.1 and again.n_measured == 0 and len(asked) == 2
    with pytest.raises(BadInput, match=r"state of another search \(text\)"):
        CostCache(path, {"text": "b"}, cost)
    path.write_text('{"costs": [[1]]}')
    with pytest.raises(BadInput, match="not the state of a search"):
        CostCache(path, {"text": "a"}, cost)


# ---------------------------------------------------------------- a model


@pytest.fixture(scope="module")
def trial_model(demo_dense, built):
    with TrialModel(built, read_header(demo_dense)) as trial_model:
        yield trial_model


def test_costs_are_those_of_eval(demo_dense, trial_model, tmp_path):
    map_costs = MapCosts(
        trial_model, {}, token_windows(trial_model.model, HELDOUT, 64, 4), tmp_path / "logits", n_ctx=64, n_threads=2
    )
    for spans in ("6-9", "1-2,4-5"):
        sa = shareatt_export.export(demo_dense, spans, tmp_path / f"{spans}.gguf").files[0]
        done = evaluate(EvaluateRequest(demo_dense, (sa,), HELDOUT, 64, 4, baselines=False))
        quality = map_costs.quality(source_map(parse_spans(spans, 12), 12))
        assert quality.kl.value == pytest.approx(done.scores[1].kl.value, rel=1e-2)  # other kernels
        assert quality.perplexity == pytest.approx(done.scores[1].perplexity, rel=1e-3)
    assert map_costs.cost(tuple(range(12))) == 0


def test_fitted_weights_are_in_the_cost(demo_dense, trial_model, tmp_path):
    """And they are gone when another map is measured."""
    output = trial_model.header.tensors["blk.7.attn_output.weight"]
    from shareatt_export.plan.projections import projections

    copy = projections(trial_model.header, read_facts(trial_model.header), 7).output
    assert copy.origin == output
    parts = token_windows(trial_model.model, HELDOUT, 64, 2)
    map_costs = MapCosts(
        trial_model, {(6, 7): PairFit(0.1, zeros(trial_model, copy))}, parts, tmp_path / "a", n_ctx=64, n_threads=2
    )
    plain = MapCosts(trial_model, {}, parts, tmp_path / "b", n_ctx=64, n_threads=2)
    found = source_map(parse_spans("6-7", 12), 12)
    dropped = plain.quality(tuple(range(12)), changes=zeros(trial_model, copy)).kl.value
    assert map_costs.cost(found) == pytest.approx(dropped, rel=1e-3)
    assert plain.cost(found) != pytest.approx(dropped, rel=0.05)
    assert map_costs.cost(tuple(range(12))) == 0


def zeros(trial_model, copy):
    return {copy: trial_model.encoded(np.zeros(copy.shape[::-1], np.float32), copy.type)}


def test_the_search_finds_what_brute_force_finds(demo_dense, trial_model, tmp_path):
    """All maps of two followers from the twelve pairs that cost least, sources at most two layers before them."""
    facts = read_facts(trial_model.header)
    map_costs = MapCosts(
        trial_model, {}, token_windows(trial_model.model, HELDOUT, 64, 2), tmp_path / "logits", n_ctx=64, n_threads=2
    )
    pairs = candidates(facts, 2)
    singles = {pair: map_costs.cost((*range(pair[1]), pair[0], *range(pair[1] + 1, 12))) for pair in pairs}
    likely = sorted(singles, key=singles.__getitem__)[:12]
    dense = tuple(range(12))
    every = [
        with_follower(with_follower(dense, *first), *second)
        for first, second in itertools.combinations(likely, 2)
        if first[1] != second[1] and first[0] != second[1] and second[0] != first[1]
    ]
    best = min(map(map_costs.cost, every))
    errors = {pair: singles[pair] ** 0.5 for pair in pairs}
    search = BeamSearch(12, errors, map_costs.cost, Settings())
    found = search.exchanged(search.path(lambda step: step.n_followers >= 2)[-1])
    assert found.cost <= best * 1.0001


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
    assert data["command"].endswith(f"--spans {data['spans']} --align --refit -o OUT.gguf")
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
    arguments = ["search", demo_dense, *small(text), "--json", "--no-align", "--no-refit"]
    bytes_of = json.loads(run(*arguments, "--kv-bytes", 4300).stdout)
    assert bytes_of["path"][-1]["kv_bytes_per_token"] <= 4300 < bytes_of["path"][-2]["kv_bytes_per_token"]
    limit = 1.5 * max(bytes_of["search_kl"], 1e-3)
    kl = json.loads(run(*arguments, "--max-kl", limit).stdout)
    assert kl["search_kl"] <= limit and len(kl["path"]) >= 2
    fast = json.loads(run(*arguments, "--followers", 3, "--fast").stdout)
    assert fast["maps_measured"] == 4 and fast["path"][-1]["followers"] == 3


def test_what_is_refused(run, demo_dense, text, tmp_path):
    search = ["search", demo_dense, "--text", text]
    assert "name one of --followers, --max-kl and --kv-bytes" in run(*search).error
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
        return finder.SearchResult(None, None, (), point(0.2), dropped, (), {}, 0.0, 0)  # type: ignore[arg-type]

    for kl, expected in ((0.1, True), (0.2, True), (0.3, False)):
        assert result(point(kl)).dropping_is_as_good is expected
    assert not result(None).dropping_is_as_good


def test_spans_auto(run, demo_dense, tmp_path):
    out, text = tmp_path / "auto.gguf", tmp_path / "text.txt"
    text.write_text(HELDOUT.content[:12_000])
    arguments = [demo_dense, "--spans", "auto", "--text", text, "--fast"]
    dry = json.loads(run(*arguments, "--followers", 2, "--dry-run", "--json").stdout)
    data = json.loads(run(*arguments, "--followers", 2, "-o", out, "--json").stdout)
    assert data["spans"] == dry["spans"] and sum(len(span["followers"]) for span in data["spans"]) == 2
    assert read_facts(read_header(out)).source_layers == tuple(data["source_layers"])
    assert "belong together" in run(*arguments, "-o", tmp_path / "x.gguf").error
    assert "belong together" in run(demo_dense, "--spans", "6-9", "--followers", 2, "--dry-run").error
    checkpoint = run(tiny_models.DEMO, *arguments[1:], "--followers", 2, "--dry-run")
    assert "a dry run of a checkpoint reads no weights" in checkpoint.error


def test_models_whose_layers_slide_by_turns(run, built, text, tmp_path):
    """Blocks of two would pair layers that attend differently, so there are none to compare with."""
    dense = tmp_path / "gemma.gguf"
    with convert.converted(
        tiny_models.save(tiny_models.build_sliding("gemma2"), tmp_path / "gemma"), tmp_path, "f32", None
    ) as made:
        made.replace(dense)
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
