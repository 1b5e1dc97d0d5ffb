"""The best map of KV groups within a budget, and the best of each simple kind: what the mixture has to beat.

Simple maps only drop, or only share, KV groups or whole layers. A greedy mixture can be worse than one of them, so the
cheapest map of all, simple or mixed, is the one that is bettered by exchanges with all kinds of moves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..errors import BadInput
from ..system.progress import Fraction, part
from .group_moves import Kind, Moves
from .group_search import Costs, Effort, Found, GroupSearch, measured_drops

SIMPLE: Mapping[str, Sequence[Kind]] = {
    "KV groups dropped": (("group", "drop"), ("layer", "drop")),
    "KV groups shared": (("group", "follow"), ("layer", "follow")),
    "layers dropped": (("layer", "drop"),),
    "layers shared": (("layer", "follow"),),
}
ALL: Sequence[Kind] = (("group", "drop"), ("group", "follow"), ("layer", "drop"), ("layer", "follow"))
SHARES = 0.2, 0.12, 0.2  # of the time: drops alone, each kind of maps, exchanges at the end


@dataclass(frozen=True)
class BestMaps:
    """`best`: the cheapest map that was found. `simple`: the cheapest of each kind that can meet the budget."""

    best: Found
    simple: Mapping[str, Found]


def best_maps(moves: Moves, costs: Costs, kv_bytes: int, effort: Effort, watch: Fraction) -> BestMaps:
    """Return the best maps with which one token takes at most `kv_bytes`. Raises BadInput if there are none."""
    of_drops, of_kind, of_exchanges = SHARES
    drops = measured_drops(moves, costs, effort, part(watch, 0, of_drops))
    simple: dict[str, Found] = {}
    found: list[Found] = []
    for i, (name, kinds) in enumerate([*SIMPLE.items(), ("mixed", ALL)]):
        first = of_drops + i * of_kind
        search = GroupSearch(moves, costs, drops, kinds, replace(effort, rounds=1))
        filled = search.filled(moves.dense, kv_bytes, part(watch, first, of_kind / 2))
        if filled is None:
            continue
        if name in SIMPLE:
            filled = simple[name] = search.exchanged(filled, kv_bytes, part(watch, first + of_kind / 2, of_kind / 2))
        found.append(filled)
    if not found:
        raise BadInput(f"no map takes at most {kv_bytes} bytes", next_step="allow more bytes")
    best = min(found, key=lambda each: each.cost)
    exchanged = GroupSearch(moves, costs, drops, ALL, effort).exchanged(
        best, kv_bytes, part(watch, 1 - of_exchanges, of_exchanges)
    )
    return BestMaps(exchanged, simple)
