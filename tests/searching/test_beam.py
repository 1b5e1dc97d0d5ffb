"""The beam search over maps, compared with brute force on made-up costs."""

import itertools

import numpy as np
import pytest

from shareatt_export.model.spans import followers, spans_of
from shareatt_export.searching.beam import BeamSearch, Settings, additions, guess, n_followers
from shareatt_export.searching.measured_costs import CostedMap
from tests.support.costs import exact, maps_of

N_LAYER = 6


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
    assert total(found) == pytest.approx(min(map(total, filter(is_contiguous, maps_of(N_LAYER, n)))))


def test_no_guess_where_pairs_are_out_of_reach():
    assert guess(4, {(0, 1): 0.1, (1, 2): 0.1}, 2) is None
    assert guess(4, {(0, 1): 0.1, (1, 2): 0.2}, 1) == (0, 0, 2, 3)


def test_additions_leave_sources_and_followers_alone():
    errors = pair_errors(0, 5)
    for found in additions((0, 0, 2, 2, 4), errors):
        assert len(followers(found)) == 3 and all(found[source] == source for source in found)
        assert found[:4] == (0, 0, 2, 2) and found[4] in (0, 2)


def crooked(errors, seed):
    """Return a cost in which neighbouring followers make each other worse, so that the costs of pairs do not add up."""
    rng = np.random.default_rng(seed)
    together = rng.random((N_LAYER, N_LAYER))

    def cost(found):
        layers = followers(found)
        alone = sum(errors[found[layer], layer] for layer in layers)
        return alone + sum(together[a, b] for a, b in itertools.combinations(layers, 2))

    return cost


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_search_comes_close_to_brute_force(n):
    """An exhaustive search finds the best map; the default settings find it nearly always."""
    found_best = 0
    for seed in range(20):
        errors = pair_errors(seed)
        cost = crooked(errors, seed)
        best = min(map(cost, maps_of(N_LAYER, n)))
        for settings in (Settings(beam=1000, candidates=1000, rounds=9), Settings()):
            search = BeamSearch(N_LAYER, errors, exact(cost), settings)
            path = search.path(lambda step: n_followers(step) >= n)
            assert [n_followers(step) for step in path] == list(range(n + 1))
            step = search.exchanged(path[-1])
            assert n_followers(step) == n and step.cost == pytest.approx(cost(step.map))
            assert step.cost <= path[-1].cost
        found_best += step.cost == pytest.approx(best)
    assert found_best >= 15


@pytest.mark.parametrize("seed", range(5))
def test_exchanges_better_a_bad_map(seed):
    errors = pair_errors(seed)
    cost = crooked(errors, seed)
    worst = max(maps_of(N_LAYER, 2), key=cost)
    search = BeamSearch(N_LAYER, errors, exact(cost))
    search.path(lambda step: n_followers(step) >= 1)
    assert search.exchanged(CostedMap(worst, cost(worst))).cost < cost(worst) / 2
