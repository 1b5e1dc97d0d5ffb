"""Which KV groups should follow, and which be dropped? A lazy greedy search by a cost that the caller measures.

Moves are made one at a time: the one that costs least for each byte of KV cache that it saves, until the cache is small
enough. What a move costs depends on the moves before it; mostly it grows. So only the moves that cost least when they
were last measured are measured anew, and the best of them is made. A move that was never measured is estimated: the
cost of dropping its groups, or its layer, times the ratio of its error to theirs (group_errors.py). At last, moves are
exchanged for others as long as that lowers the cost.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..model.attention_map import AttentionMap, Group
from ..system.progress import Fraction
from .group_goal import Goal
from .group_moves import Kind, Move, Moves, Unit
from .measured_costs import CostedMap, MeasuredCosts

Costs = MeasuredCosts[AttentionMap]
Found = CostedMap[AttentionMap]
DROPS: Sequence[Kind] = (("group", "drop"), ("layer", "drop"))


@dataclass(frozen=True)
class Effort:
    """`tried`: moves that are measured together. `batches`: how often, before one of them is made.

    `exchanges`: maps tried in place of each move. `rounds`: of exchanges, at most.
    """

    tried: int = 4
    batches: int = 2
    exchanges: int = 4
    rounds: int = 2


FULL, FAST = Effort(), Effort(tried=3, batches=1, exchanges=2, rounds=1)


def measured_drops(moves: Moves, costs: Costs, watch: Fraction) -> dict[Move, float]:
    """Return the cost of each drop of a group or a layer alone, on the first windows."""
    drops = list(dict.fromkeys(moves.available(moves.dense, DROPS)))
    found = {}
    for i, move in enumerate(drops):
        watch(i / len(drops))
        found[move] = costs.rough(move.applied(moves.dense))
    return found


class GroupSearch:
    """Searches with moves of some kinds. `drops`: the result of measured_drops()."""

    def __init__(
        self, moves: Moves, costs: Costs, drops: Mapping[Move, float], kinds: Sequence[Kind], effort: Effort = FULL
    ) -> None:
        self._moves, self._costs, self._kinds, self._effort = moves, costs, kinds, effort
        self._last = dict(drops)  # what each move cost when it was last measured

    def filled(self, found: AttentionMap, goal: Goal, watch: Fraction) -> Found | None:
        """Return the map after moves until it is as small as the goal says; None if there are not enough moves.

        If the goal is a cost, return the smallest map on the way that costs no more.
        """
        first = self._moves.size(found) - goal.most
        while (needed := self._moves.size(found) - goal.most) > 0:
            watch(1 - needed / first)
            after = self._after_best_move(found, needed)
            if goal.is_cost and (after is None or self._costs.costed(after).cost > goal.max_cost):
                break
            if after is None:
                return None
            found = after
        return self._costs.costed(found)

    def exchanged(self, found: Found, most: float, watch: Fraction) -> Found:
        """Undo single moves, and make others in their place, as long as that lowers the cost.

        `most`: the size that the map must not exceed.
        """
        for number in range(self._effort.rounds):
            before, changed = found, list(self._moves.changed(found.map, self._smallest_unit))
            for i, groups in enumerate(changed):
                watch((number + i / len(changed)) / self._effort.rounds)
                if any(found.map.action(group) == "own" for group in groups):
                    continue
                others = self._others(found.map, groups, most)
                found = min(found, *self._costs.best([found.map, *others], 1), key=lambda each: each.cost)
            if found == before:
                break
        return found

    @property
    def _smallest_unit(self) -> Unit:
        return "group" if any(unit == "group" for unit, _ in self._kinds) else "layer"

    def _after_best_move(self, before: AttentionMap, needed: float) -> AttentionMap | None:
        """Return the map after the move that costs least for each byte needed, of those measured; None without any."""
        moves = {move.applied(before): move for move in self._ranked(before, needed)}
        self._costs.costed(before)

        def rank(after: AttentionMap, costs: Sequence[float]) -> float:
            return self._added(before, costs) / self._useful(moves[after], needed)

        waiting, tried = list(moves), self._effort.tried
        best, least = None, math.inf
        for first in range(0, self._effort.batches * tried, tried):
            batch = [
                after
                for after in waiting[first : first + tried]
                if self._estimate(moves[after]) / self._useful(moves[after], needed) < least
            ]
            if not batch:
                break
            (found,) = self._costs.best(batch, 1, rank)
            for after in batch:
                self._last[moves[after]] = self._added(before, self._costs.known(after))
            if (cost := rank(found.map, self._costs.known(found.map))) < least:
                best, least = found.map, cost
        return best

    def _others(self, found: AttentionMap, groups: Sequence[Group], most: float) -> list[AttentionMap]:
        """Return maps without the moves of some groups, and with what seems to be best in their place."""
        fewer = self._undone(found, groups)
        needed = self._moves.size(fewer) - most
        if needed <= 0:
            return [fewer]
        others: list[AttentionMap] = []
        for move in self._ranked(fewer, needed, groups):
            other = self._completed(move.applied(fewer), most)
            if other is not None and other != found and other not in others:
                others.append(other)
            if len(others) == self._effort.exchanges:
                break
        return others

    def _completed(self, found: AttentionMap, most: float) -> AttentionMap | None:
        """Return the map after further moves, and without those that are not needed, by what they cost last.

        None if there are not enough moves.
        """
        while (needed := self._moves.size(found) - most) > 0:
            if not (ranked := self._ranked(found, needed)):
                return None
            found = ranked[0].applied(found)
        while True:
            fewer = {
                self._estimate(Move(tuple((group, found.of(group)) for group in groups))): self._undone(found, groups)
                for groups in self._moves.changed(found, self._smallest_unit)
            }
            enough = [cost for cost, each in fewer.items() if self._moves.size(each) <= most]
            if not enough:
                return found
            found = fewer[max(enough)]

    @staticmethod
    def _undone(found: AttentionMap, groups: Sequence[Group]) -> AttentionMap:
        for group in groups:
            found = found.with_own(group)
        return found

    def _ranked(self, found: AttentionMap, needed: float, groups: Sequence[Group] = ()) -> list[Move]:
        """Return the moves that a map allows, the lowest estimate for each byte needed first.

        The `groups` may follow any heads, not only those with the least error.
        """
        moves = list(self._moves.available(found, self._kinds))
        unit = self._smallest_unit
        if groups and (unit, "follow") in self._kinds:
            moves += self._moves.follows(found, unit, groups)
        return sorted(dict.fromkeys(moves), key=lambda move: self._estimate(move) / self._useful(move, needed))

    def _useful(self, move: Move, needed: float) -> float:
        """Return how much of what a move saves is needed."""
        return min(needed, self._moves.saved(move))

    def _estimate(self, move: Move) -> float:
        """Return what the move cost when it was last measured, else what its error lets expect."""
        if move in self._last:
            return self._last[move]
        drop = self._moves.drop(move.groups)
        known = drop if drop in self._last else self._moves.drop(self._moves.dense.groups(move.groups[0].layer))
        return self._last[known] * self._moves.error(move) / max(self._moves.error(known), sys.float_info.min)

    def _added(self, before: AttentionMap, costs: Sequence[float]) -> float:
        """Return by how much the costs of a map, on the first windows, exceed those of the map before it there."""
        return float(np.mean(costs) - np.mean(self._costs.known(before)[: len(costs)]))
