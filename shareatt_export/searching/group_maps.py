"""The best map of KV groups that meets a goal, and the best of each simple kind: what the mixture has to beat.

Simple maps only drop, or only share, KV groups or whole layers. A greedy mixture can be worse than one of them, so the
best map of all, simple or mixed, is the one that is bettered by exchanges with all kinds of moves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..errors import BadInput
from ..system.progress import Fraction, part
from .group_goal import Goal
from .group_moves import Kind, Move, Moves
from .group_search import DROPS, Costs, Effort, Found, GroupSearch, measured_drops

SIMPLE: Mapping[str, Sequence[Kind]] = {
    "KV groups dropped": DROPS,
    "KV groups shared": (("group", "follow"), ("layer", "follow")),
    "layers dropped": (("layer", "drop"),),
    "layers shared": (("layer", "follow"),),
}
ALL: Sequence[Kind] = (*DROPS, ("group", "follow"), ("layer", "follow"))
MIXED = "mixed"
SHARES = 0.2, 0.6, 0.2  # of the time: drops alone, all kinds of maps, exchanges at the end


@dataclass(frozen=True)
class BestMaps:
    """`best`: of all that were found. `simple`: the best of each kind that can meet the goal.

    `drops`: what it costs to drop a group or a layer alone, on the first windows.
    """

    best: Found
    simple: Mapping[str, Found]
    drops: Mapping[Move, float]


def best_maps(
    moves: Moves, costs: Costs, goal: Goal, effort: Effort, watch: Fraction, allowed: Sequence[Kind] = ALL
) -> BestMaps:
    """Return the best maps that meet the goal, with moves of the kinds `allowed`. Raises BadInput if there are none."""
    of_drops, of_kinds, of_exchanges = SHARES
    tried = {name: kinds for name, kinds in SIMPLE.items() if set(kinds) <= set(allowed)}
    if set(allowed) not in map(set, tried.values()):
        tried[MIXED] = allowed
    of_kind = of_kinds / len(tried)
    drops = measured_drops(moves, costs, part(watch, 0, of_drops))
    simple: dict[str, Found] = {}
    found: list[Found] = []

    def exchanged(search: GroupSearch, each: Found, first: float, share: float) -> Found:
        return search.exchanged(each, goal.limit(moves.size(each.map)), part(watch, first, share))

    for i, (name, kinds) in enumerate(tried.items()):
        first = of_drops + i * of_kind
        search = GroupSearch(moves, costs, drops, kinds, replace(effort, rounds=1))
        filled = search.filled(moves.dense, goal, part(watch, first, of_kind / 2))
        if filled is None or not filled.map.touched:
            continue
        if name != MIXED:
            filled = simple[name] = exchanged(search, filled, first + of_kind / 2, of_kind / 2)
        found.append(filled)
    if not found:
        raise BadInput("no map meets the goal", next_step="save less, or allow a higher KL divergence")
    best = min(found, key=lambda each: goal.rank(moves.size(each.map), each.cost))
    search = GroupSearch(moves, costs, drops, allowed, effort)
    best = exchanged(search, best, 1 - of_exchanges, of_exchanges / 2)
    if goal.is_cost:  # the exchanges have made room for more
        best = search.filled(best.map, goal, part(watch, 1 - of_exchanges / 2, of_exchanges / 2)) or best
    return BestMaps(best, simple, drops)
