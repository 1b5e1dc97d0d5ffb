"""What a search can do with the KV groups of a model: single groups or whole layers follow, or are dropped.

A group follows heads of one earlier layer: for each of its query heads the one with the least error, of all heads that
compute their own attention weights there, or of one group of them, which then leaves the other groups free to follow or
to be dropped themselves. A whole layer follows the heads of the same number, as in the paper.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ..model.attention_map import DROPPED, AttentionMap, Group, following
from ..model.candidate_pairs import Pair
from ..model.facts import Facts
from .group_errors import GroupErrors
from .group_goal import Size

Unit = Literal["group", "layer"]
Kind = tuple[Unit, Literal["drop", "follow"]]


@dataclass(frozen=True)
class Move:
    """New sources for the query heads of some groups, all of which are DROPPED or heads of one layer."""

    changes: tuple[tuple[Group, tuple[int, ...]], ...]

    @property
    def groups(self) -> tuple[Group, ...]:
        return tuple(group for group, _ in self.changes)

    def applied(self, found: AttentionMap) -> AttentionMap:
        for group, sources in self.changes:
            found = found.with_sources(group, sources)
        return found


class Moves:
    """The moves of a dense model that make its `size` smaller, by the errors of its heads.

    Of the layers in `kept`, one KV group at least computes its own attention weights.
    """

    def __init__(self, facts: Facts, errors: GroupErrors, size: Size, kept: Collection[int] = ()) -> None:
        self.dense, self.size, self._errors, self._kept = facts.dense_attention, size, errors, kept
        self._layers = [layer for layer in errors.dropped if facts.n_head[layer] % facts.n_head_kv[layer] == 0]
        self._sources_of: dict[int, list[int]] = {}
        for source, follower in errors.shared:
            self._sources_of.setdefault(follower, []).append(source)
        self._saved: dict[Move, float] = {}

    def saved(self, move: Move) -> float:
        """Return by how much the size is smaller after a move."""
        if move not in self._saved:
            self._saved[move] = self.size(self.dense) - self.size(move.applied(self.dense))
        return self._saved[move]

    def error(self, move: Move) -> float:
        """Return the squared error that a move makes in the attention output of its layer."""
        return sum(
            self._errors.dropped[group.layer][head] if source == DROPPED else self._shared(group.layer, head, source)
            for group, sources in move.changes
            for head, source in zip(self.dense.heads(group), sources, strict=True)
        )

    def available(self, found: AttentionMap, kinds: Sequence[Kind]) -> Iterator[Move]:
        """Yield the moves that a map allows: dropped, or following with the least error, for groups that are own."""
        for unit, groups in self._free(found, {unit for unit, _ in kinds}):
            moves = [self.drop(groups)] if (unit, "drop") in kinds else []
            moves += self.follows(found, unit, groups)[:1] if (unit, "follow") in kinds else []
            yield from (move for move in moves if self.saved(move) > 0 and self._keeps(found, move))

    def _keeps(self, found: AttentionMap, move: Move) -> bool:
        layers = {group.layer for group in move.groups}
        return layers.isdisjoint(self._kept) or all(move.applied(found).n_k(layer) for layer in layers)

    def drop(self, groups: Sequence[Group]) -> Move:
        """Return the move that drops these groups."""
        return Move(tuple((group, (DROPPED,) * self.dense.n_rep(group.layer)) for group in groups))

    def follows(self, found: AttentionMap, unit: Unit, groups: Sequence[Group]) -> list[Move]:
        """Return the moves that let a group, or all groups of a layer, follow; the least error first."""
        moves = [
            Move(tuple((group, self._sources(group, allowed)) for group in groups))
            if unit == "group"
            else Move(tuple((group, tuple(allowed[head] for head in self.dense.heads(group))) for group in groups))
            for source in self._sources_of.get(groups[0].layer, [])
            for allowed in self._own_heads(found, unit, source)
        ]
        return sorted(dict.fromkeys(moves), key=self.error)

    def changed(self, found: AttentionMap, unit: Unit) -> Iterator[tuple[Group, ...]]:
        """Yield the groups that are not own, one at a time or all of a layer."""
        for layer in found.touched:
            groups = tuple(group for group in found.groups(layer) if found.action(group) != "own")
            yield from [groups] if unit == "layer" else [(group,) for group in groups]

    def _free(self, found: AttentionMap, units: set[Unit]) -> Iterator[tuple[Unit, tuple[Group, ...]]]:
        sources = {
            Group(layer, source % found.stride // found.n_rep(layer))
            for group, layer in following(found)
            for source in found.of(group)
        }
        for layer in self._layers:
            groups = found.groups(layer)
            free = [group for group in groups if found.action(group) == "own" and group not in sources]
            if "group" in units:
                yield from (("group", (group,)) for group in free)
            if "layer" in units and len(free) == len(groups):
                yield "layer", groups

    def _own_heads(self, found: AttentionMap, unit: Unit, layer: int) -> list[list[int]]:
        """Return the sets of heads of a source layer, as they are numbered in a map, of which a follower may choose."""
        own = found.of_action(layer, "own")
        if unit == "layer":
            return [list(self.dense.sources[layer])] if len(own) == found.n_head_kv[layer] else []
        by_group = [list(found.of(group)) for group in own]
        return [[head for heads in by_group for head in heads], *by_group] if len(own) > 1 else by_group

    def _sources(self, group: Group, allowed: Sequence[int]) -> tuple[int, ...]:
        layer = group.layer
        return tuple(
            min(allowed, key=lambda source: self._shared(layer, head, source)) for head in self.dense.heads(group)
        )

    def _shared(self, layer: int, head: int, source: int) -> float:
        source_layer, source_head = divmod(source, self.dense.stride)
        return float(self._errors.shared[Pair(source_layer, layer)][head, source_head])
