"""Costs of maps, compared with eval and with brute force."""

import itertools
from functools import partial

import numpy as np
import pytest

import shareatt_export
from shareatt_export.evaluation.evaluate import evaluate
from shareatt_export.evaluation.request import EvaluateRequest
from shareatt_export.formats.texts import read_corpus
from shareatt_export.llamacpp.token_windows import token_windows
from shareatt_export.model.candidate_pairs import Pair, candidates
from shareatt_export.model.facts import read_facts
from shareatt_export.model.spans import parse_spans, source_map
from shareatt_export.searching.beam import BeamSearch, n_followers, with_follower
from shareatt_export.searching.map_cost import MapCosts, unchanged
from shareatt_export.searching.pair_fits import PairFit, fitted
from shareatt_export.searching.scoring import score_dropped
from tests.support import tiny_models
from tests.support.costs import exact

HELDOUT = read_corpus(tiny_models.DEMO / "heldout.txt")


def test_costs_are_those_of_eval(demo_dense, trial_model, tmp_path):
    windows = token_windows(trial_model.model, HELDOUT, 64, 4)
    map_costs = MapCosts(trial_model, unchanged, windows, tmp_path / "logits", n_ctx=64, n_threads=2)
    facts = read_facts(trial_model.header)
    for spans in ("6-9", "1-2,4-5"):
        sa = shareatt_export.export(demo_dense, spans, tmp_path / f"{spans}.gguf").files[0]
        done = evaluate(EvaluateRequest(demo_dense, (sa,), HELDOUT, 64, 4, baselines=False, drop=True))
        dropped = score_dropped(
            done.subjects.others[0].facts.attention.source_layers, map_costs, facts, trial_model.header
        )
        assert dropped.quality.kl.value == pytest.approx(done.scores[2].kl.value, rel=1e-2)
        assert dropped.kv_bytes_per_token == done.scores[2].subject.kv_bytes_per_token
        quality = map_costs.quality(facts.of_layers(source_map(parse_spans(spans, 12), 12)))
        assert quality.kl.value == pytest.approx(done.scores[1].kl.value, rel=1e-2)  # eval uses other kernels
        assert quality.perplexity == pytest.approx(done.scores[1].perplexity, rel=1e-3)
    assert map_costs.costs(facts.dense_attention, 0, 4) == [0] * 4


def test_fitted_weights_are_in_the_cost(demo_dense, trial_model, tmp_path):
    """The fitted weights are removed again before another map is measured."""
    output = trial_model.header.tensors["blk.7.attn_output.weight"]
    from shareatt_export.plan.projections import projections

    facts = read_facts(trial_model.header)
    copy = projections(trial_model.header, facts, 7).output
    assert copy.origin == output
    parts = token_windows(trial_model.model, HELDOUT, 64, 2)
    fits = {Pair(6, 7): PairFit(0.1, zeros(trial_model, copy))}
    map_costs = MapCosts(trial_model, partial(fitted, fits), parts, tmp_path / "a", n_ctx=64, n_threads=2)
    plain = MapCosts(trial_model, unchanged, parts, tmp_path / "b", n_ctx=64, n_threads=2)
    found = facts.of_layers(source_map(parse_spans("6-7", 12), 12))
    dropped = plain.quality(facts.dense_attention, changes=zeros(trial_model, copy)).kl.value
    # the dense model uses flash attention, whose rounding is other than that of the kernels of a map
    assert np.mean(map_costs.costs(found, 0, 2)) == pytest.approx(dropped, rel=0.01)
    assert np.mean(plain.costs(found, 0, 2)) != pytest.approx(dropped, rel=0.05)
    assert map_costs.costs(facts.dense_attention, 1, 2) == [0]


def zeros(trial_model, copy):
    return {copy: trial_model.encoded(np.zeros(copy.shape[::-1], np.float32), copy.type)}


def test_the_search_finds_what_brute_force_finds(demo_dense, trial_model, tmp_path):
    """Compare with all maps of two followers from the twelve best pairs, with sources at most two layers before."""
    facts = read_facts(trial_model.header)
    windows = token_windows(trial_model.model, HELDOUT, 64, 2)
    map_costs = MapCosts(trial_model, unchanged, windows, tmp_path / "logits", n_ctx=64, n_threads=2)
    pairs = candidates(facts, 2)

    def cost(found):
        return float(np.mean(map_costs.costs(facts.of_layers(found), 0, 2)))

    singles = {pair: cost((*range(pair[1]), pair[0], *range(pair[1] + 1, 12))) for pair in pairs}
    likely = sorted(singles, key=singles.__getitem__)[:12]
    dense = tuple(range(12))
    every = [
        with_follower(with_follower(dense, *first), *second)
        for first, second in itertools.combinations(likely, 2)
        if first[1] != second[1] and first[0] != second[1] and second[0] != first[1]
    ]
    best = min(map(cost, every))
    errors = {pair: singles[pair] ** 0.5 for pair in pairs}
    search = BeamSearch(12, errors, exact(cost))
    found = search.exchanged(search.path(lambda step: n_followers(step) >= 2)[-1])
    assert found.cost <= best * 1.0001
