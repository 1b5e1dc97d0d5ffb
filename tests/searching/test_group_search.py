"""The search over KV groups, compared with brute force on made-up costs."""

import itertools

import numpy as np
import pytest

from shareatt_export.errors import BadInput
from shareatt_export.formats.gguf_reader import read_header
from shareatt_export.model.attention_map import DROPPED, AttentionMap, Group, check, following
from shareatt_export.model.candidate_pairs import candidates
from shareatt_export.model.facts import read_facts
from shareatt_export.model.synthetic import ModelShape, write_random
from shareatt_export.searching.group_errors import GroupErrors, from_arrays, to_arrays
from shareatt_export.searching.group_goal import Goal, decode_reads
from shareatt_export.searching.group_maps import ALL, SIMPLE, best_maps
from shareatt_export.searching.group_moves import Move, Moves
from shareatt_export.searching.group_search import DROPS, FAST, FULL, Effort, GroupSearch, measured_drops
from shareatt_export.searching.measured_costs import MeasuredCosts
from shareatt_export.searching.state import State

EXHAUSTIVE = Effort(tried=1000, batches=1, exchanges=1000, rounds=9)


def watch(fraction):
    assert 0 <= fraction <= 1


def shape(n_layer, n_head, n_head_kv):
    return ModelShape(n_layer, 16 * n_head, n_head, n_head_kv, 16, 64, 32).facts()


def made_up_errors(facts, seed, reach=8):
    """Return errors in which following costs less than dropping, mostly."""
    rng = np.random.default_rng(seed)
    return GroupErrors(
        {layer: rng.uniform(0.5, 1, facts.n_head[layer]) for layer in range(facts.n_layer)},
        {pair: rng.uniform(0.1, 1, (facts.n_head[0],) * 2) for pair in candidates(facts, reach)},
    )


def crooked(moves, seed):
    """Return a cost in which changed groups make each other worse, so that the costs of moves do not add up."""
    rng = np.random.default_rng(seed)
    together = 0.25 * rng.random((64, 64))

    def cost(found):
        groups = [group for layer in found.touched for group in found.groups(layer) if found.action(group) != "own"]
        alone = sum(moves.error(Move(((group, found.of(group)),))) for group in groups)
        return alone + sum(
            together[8 * a.layer + a.number, 8 * b.layer + b.number] for a, b in itertools.combinations(groups, 2)
        )

    return cost


def exact(cost):
    """Return costs that one window shows exactly."""

    def measure(found, first, stop):
        return [cost(found)] * (stop - first)

    return MeasuredCosts(State(None, {}), measure, 1, AttentionMap.flat)


def every_map(facts, reach):
    """Yield all maps of a model that has one query head in each group."""
    dense = facts.dense_attention
    sources = {follower: [] for follower in range(facts.n_layer)}
    for source, follower in candidates(facts, reach):
        sources[follower] += dense.sources[source]
    heads = [(layer, own) for layer in range(facts.n_layer) for own in dense.sources[layer]]
    for chosen in itertools.product(*([own, DROPPED, *sources[layer]] for layer, own in heads)):
        flat = dict(zip((own for _, own in heads), chosen, strict=True))
        if all(source in (own, DROPPED) or flat[source] == source for own, source in flat.items()):
            n = facts.n_head[0]
            yield AttentionMap(dense.n_head_kv, tuple(chosen[n * i : n * i + n] for i in range(facts.n_layer)))


@pytest.mark.parametrize("saved", [1, 3, 4])  # of 12 caches
def test_a_search_comes_close_to_brute_force(saved):
    facts = shape(3, 2, 2)
    dense, one = facts.kv_bytes_per_token(facts.attention), 2 * facts.head_dim_k
    maps = [each for each in every_map(facts, 8) if facts.kv_bytes_per_token(each) <= dense - saved * one]
    n_best = 0
    for seed in range(20):
        moves = Moves(facts, made_up_errors(facts, seed), facts.kv_bytes_per_token)
        cost = crooked(moves, seed)
        best = min(map(cost, maps))
        for effort in (EXHAUSTIVE, FULL):
            found = best_maps(moves, exact(cost), Goal(dense - saved * one), effort, watch)
            assert found.best.cost == pytest.approx(cost(found.best.map))
            assert best <= found.best.cost + 1e-9
        n_best += found.best.cost == pytest.approx(best)
    assert n_best >= 16


@pytest.mark.parametrize("effort", [FULL, FAST])
@pytest.mark.parametrize(("n_head", "n_head_kv"), [(4, 4), (6, 3), (4, 1)])
def test_maps_are_valid_and_meet_the_budget(n_head, n_head_kv, effort):
    facts = shape(5, n_head, n_head_kv)
    dense = facts.kv_bytes_per_token(facts.attention)
    for seed, share in enumerate((0.9, 0.75, 0.5)):
        moves = Moves(facts, made_up_errors(facts, seed, reach=2), facts.kv_bytes_per_token)
        found = best_maps(moves, exact(crooked(moves, seed)), Goal(int(share * dense)), effort, watch)
        for each in (found.best, *found.simple.values()):
            check(each.map)
            assert 0 < facts.kv_bytes_per_token(each.map) <= share * dense
            assert found.best.cost <= each.cost
            assert all(group.layer - source <= 2 for group, source in following(each.map))
        for name, actions in (("dropped", {"own", "drop"}), ("shared", {"own", "follow"})):
            for kind in set(found.simple) & {f"KV groups {name}", f"layers {name}"}:
                one = found.simple[kind].map
                assert {one.action(group) for layer in one.touched for group in one.groups(layer)} <= actions
        for kind in set(found.simple) & {"layers dropped", "layers shared"}:
            assert all(len(set(map(found.simple[kind].map.action, found.simple[kind].map.groups(layer)))) == 1
                       for layer in found.simple[kind].map.touched)  # fmt: skip


def test_a_budget_that_no_map_meets():
    facts = shape(2, 2, 2)
    moves = Moves(facts, made_up_errors(facts, 0), facts.kv_bytes_per_token)
    costs = exact(crooked(moves, 0))
    search = GroupSearch(moves, costs, measured_drops(moves, costs, watch), SIMPLE["layers shared"])
    assert search.filled(moves.dense, Goal(3 * 64), watch).map.source_layers == (0, 0)  # one K less
    assert search.filled(moves.dense, Goal(2 * 64), watch) is None
    with pytest.raises(BadInput, match="no map meets the goal; save less, or allow a higher KL divergence"):
        best_maps(moves, costs, Goal(-1), FULL, watch)


@pytest.mark.parametrize("effort", [EXHAUSTIVE, FULL])
def test_the_smallest_map_that_costs_no_more(effort):
    facts = shape(3, 2, 2)
    one = 2 * facts.head_dim_k
    maps, more = list(every_map(facts, 8)), 0
    for seed in range(10):
        moves = Moves(facts, made_up_errors(facts, seed), facts.kv_bytes_per_token)
        cost = crooked(moves, seed)
        smallest = min(facts.kv_bytes_per_token(each) for each in maps if cost(each) <= 1.5)
        found = best_maps(moves, exact(cost), Goal(max_cost=1.5), effort, watch)
        assert found.best.cost == pytest.approx(cost(found.best.map)) and found.best.cost <= 1.5
        assert all(each.cost <= 1.5 for each in found.simple.values())
        more += (facts.kv_bytes_per_token(found.best.map) - smallest) // one
    assert more <= 2  # caches in all
    with pytest.raises(BadInput, match="no map meets the goal"):
        best_maps(moves, exact(cost), Goal(max_cost=0.01), effort, watch)


def test_a_map_that_decodes_faster(tmp_path):
    """Where much is read of K, little of V, following saves nearly what dropping does; weights count as well."""
    model = ModelShape(6, 64, 4, 4, 16, 64, 32)
    path = tmp_path / "model.gguf"
    write_random(path, model)
    header = read_header(path)
    facts = read_facts(header)
    deep, empty = (decode_reads(header, facts, depth) for depth in (10_000, 0))
    for size, share in ((deep, 0.8), (empty, 0.97)):
        moves = Moves(facts, made_up_errors(facts, 0), size)
        most = share * size(facts.attention)
        found = best_maps(moves, exact(crooked(moves, 0)), Goal(most), FULL, watch).best.map
        smaller = [found.with_own(group) for layer in found.touched for group in found.groups(layer)
                   if found.action(group) != "own"]  # fmt: skip
        assert size(found) <= most < min(map(size, smaller))


def test_a_layer_may_have_to_keep_a_group():
    """Dropping costs nothing in layer 0."""
    facts = shape(3, 2, 2)
    most = 0.5 * facts.kv_bytes_per_token(facts.attention)

    def found(kept):
        moves = Moves(facts, made_up_errors(facts, 0), facts.kv_bytes_per_token, kept=kept)
        costs = exact(lambda each: float(sum(len(each.of_action(layer, "drop")) for layer in (1, 2))))
        return best_maps(moves, costs, Goal(most), FULL, watch, DROPS)

    assert found(()).best.map.n_k(0) == 0
    assert found((0,)).best.map.n_k(0) == 1
    assert found((0,)).simple.keys() == {"KV groups dropped", "layers dropped"}
    assert not any(following(found((0,)).best.map))


def test_moves_leave_sources_and_followers_alone():
    facts = shape(3, 4, 2)
    moves = Moves(facts, made_up_errors(facts, 0), facts.kv_bytes_per_token)
    found = moves.dense.with_sources(Group(1, 0), [0, 1]).with_drop(Group(1, 1))  # both heads of group 0.0 are sources
    allowed = list(moves.available(found, ALL))
    assert {group for move in allowed for group in move.groups} == {Group(0, 1), Group(2, 0), Group(2, 1)}
    for move in allowed:
        after = move.applied(found)
        check(after)
        saved = facts.kv_bytes_per_token(found) - facts.kv_bytes_per_token(after)
        assert saved == moves.saved(move) > 0
    with_source_in_1 = [move for move in allowed if min(move.changes[0][1]) >= 4]
    assert with_source_in_1 == []  # no group of layer 1 computes its own


def test_a_follower_takes_the_best_heads_that_are_left():
    facts = shape(2, 4, 2)
    errors = made_up_errors(facts, 0)
    errors.shared[0, 1][:] = [[4, 1, 2, 3], [1, 4, 2, 3], [3, 1, 4, 2], [1, 3, 2, 4]]
    moves = Moves(facts, errors, facts.kv_bytes_per_token)
    group = (Group(1, 0),)
    best, *others = moves.follows(moves.dense, "group", group)
    assert best.changes == ((Group(1, 0), (1, 0)),) and moves.error(best) == 2
    assert [each.changes[0][1] for each in others] == [(2, 2)]  # of group 0.1 alone; (1, 0) is of group 0.0 already
    (left,) = moves.follows(moves.dense.with_drop(Group(0, 0)), "group", group)
    assert left == others[0] and moves.error(left) == 4
    (whole,) = moves.follows(moves.dense, "layer", facts.attention.groups(1))
    assert whole.applied(moves.dense) == facts.of_layers((0, 0)) and moves.error(whole) == 16
    assert moves.follows(moves.dense.with_drop(Group(0, 0)), "layer", facts.attention.groups(1)) == []


def test_the_moves_with_the_lowest_estimates_are_measured_and_no_others():
    """Costs that add up are as they were before, so that each step measures one batch."""
    facts = shape(6, 4, 4)
    moves = Moves(facts, made_up_errors(facts, 0), facts.kv_bytes_per_token)
    asked = []

    def cost(found):
        asked.append(found)
        groups = [group for layer in found.touched for group in found.groups(layer)]
        return sum(moves.error(Move(((group, found.of(group)),))) for group in groups if found.action(group) != "own")

    costs = exact(cost)
    drops = measured_drops(moves, costs, watch)
    assert len(asked) == len(drops) == 6 * 4 + 6
    search = GroupSearch(moves, costs, drops, [("group", "drop")])
    n_before = len(asked)
    found = search.filled(moves.dense, Goal(facts.kv_bytes_per_token(moves.dense) - 3 * 64), watch)
    assert len(asked) - n_before == 1 + 4 + 4  # the dense map; of the first batch, all maps are known
    cheapest = sorted((cost, move) for move, cost in drops.items() if len(move.groups) == 1)[:3]
    assert found.cost == pytest.approx(sum(cost for cost, _ in cheapest))


def test_errors_are_kept_as_arrays():
    errors = made_up_errors(shape(3, 4, 2), 0)
    again = from_arrays(to_arrays(errors))
    assert again.dropped.keys() == errors.dropped.keys() and again.shared.keys() == errors.shared.keys()
    assert all(np.array_equal(again.dropped[layer], found) for layer, found in errors.dropped.items())
    assert all(np.array_equal(again.shared[pair], found) for pair, found in errors.shared.items())
