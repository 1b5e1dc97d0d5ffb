"""What each KV group of a model does: compute attention weights, follow heads of an earlier layer, or nothing.

A KV group is a KV head and the query heads that use it. In an attention map, a group has one of three actions:

- own: its query heads compute their attention weights, as in the dense model.
- follow: each of its query heads uses the attention weights of a head of one earlier layer. Q and K of the group are
  left away, and its K cache.
- drop: the group has no output. Q, K, V, both caches and the columns of the output projection are left away.

Sharing of whole layers (spans.py) is the map in which all groups of a layer follow the heads of the same number.

A head is written as one number, stride * layer + head, where the stride is the number of query heads of a layer.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from ..errors import BadSpans
from .spans import SourceMap

Action = Literal["own", "follow", "drop"]
DROPPED = -1


@dataclass(frozen=True, order=True)
class Group:
    """A KV group: a layer, and the number of the KV head in it."""

    layer: int
    number: int

    def __str__(self) -> str:
        return f"{self.layer}.{self.number}"


@dataclass(frozen=True)
class AttentionMap:
    """`sources[layer][head]` is the head whose attention weights a query head uses, itself, or DROPPED.

    `n_head_kv` has the KV heads of each layer.
    """

    n_head_kv: tuple[int, ...]
    sources: tuple[tuple[int, ...], ...]

    @cached_property
    def stride(self) -> int:
        """Query heads of a layer, the most if layers differ."""
        return max(map(len, self.sources))

    @property
    def n_layer(self) -> int:
        return len(self.sources)

    def n_rep(self, layer: int) -> int:
        """Query heads of one KV group."""
        return len(self.sources[layer]) // self.n_head_kv[layer] if self.n_head_kv[layer] else 0

    def heads(self, group: Group) -> range:
        """The query heads of a group, by their number in the layer."""
        n_rep = self.n_rep(group.layer)
        return range(group.number * n_rep, (group.number + 1) * n_rep)

    def groups(self, layer: int) -> tuple[Group, ...]:
        """All groups of a layer of the dense model; none if it has no query heads."""
        return tuple(Group(layer, number) for number in range(self.n_head_kv[layer] if self.sources[layer] else 0))

    def of(self, group: Group) -> tuple[int, ...]:
        """The sources of the query heads of a group."""
        return tuple(self.sources[group.layer][head] for head in self.heads(group))

    def action(self, group: Group) -> Action:
        """What a group does, by its first head: the others of a valid map do the same."""
        first = self.of(group)[0]
        own = self.stride * group.layer + self.heads(group)[0]
        return "own" if first == own else "drop" if first == DROPPED else "follow"

    def of_action(self, layer: int, action: Action) -> tuple[Group, ...]:
        """The groups of a layer that have an action."""
        return tuple(group for group in self.groups(layer) if self.action(group) == action)

    def source_layer(self, group: Group) -> int:
        """The layer whose attention weights a following group uses."""
        return self.of(group)[0] // self.stride

    def n_k(self, layer: int) -> int:
        """KV heads that have a K."""
        return len(self.of_action(layer, "own"))

    def n_v(self, layer: int) -> int:
        """KV heads that have a V."""
        return self.n_head_kv[layer] - len(self.of_action(layer, "drop"))

    @cached_property
    def touched(self) -> tuple[int, ...]:
        """The layers in which a group follows or is dropped."""
        return tuple(
            layer for layer, sources in enumerate(self.sources) if sources != _own(layer, len(sources), self.stride)
        )

    @property
    def is_dense(self) -> bool:
        return not self.touched

    @cached_property
    def source_layers(self) -> SourceMap | None:
        """The same as a source map of layers; None if a layer is neither dense nor follows another one as a whole."""
        layers = [self.source_of_layer(layer) for layer in range(self.n_layer)]
        return None if None in layers else tuple(source for source in layers if source is not None)

    def source_of_layer(self, layer: int) -> int | None:
        """The layer whose heads all heads of a layer use in their order, perhaps itself; None if they do not."""
        sources = self.sources[layer]
        source = sources[0] // self.stride if sources and sources[0] >= 0 else layer
        return source if sources == _own(source, len(sources), self.stride) else None

    def with_sources(self, group: Group, sources: Sequence[int]) -> "AttentionMap":
        """Return the map in which the query heads of a group have these sources."""
        heads, layer = self.heads(group), list(self.sources[group.layer])
        layer[heads.start : heads.stop] = sources
        return self.with_layer(group.layer, layer)

    def with_layer(self, layer: int, sources: Sequence[int]) -> "AttentionMap":
        """Return the map in which all query heads of a layer have these sources."""
        return replace(self, sources=(*self.sources[:layer], tuple(sources), *self.sources[layer + 1 :]))

    def with_drop(self, group: Group) -> "AttentionMap":
        return self.with_sources(group, [DROPPED] * self.n_rep(group.layer))

    def with_own(self, group: Group) -> "AttentionMap":
        return self.with_sources(group, [self.stride * group.layer + head for head in self.heads(group)])

    def with_follow(self, group: Group, source: Group) -> "AttentionMap":
        """Return the map in which each query head of a group follows the head in the same place of `source`."""
        return self.with_sources(group, [self.stride * source.layer + head for head in self.heads(source)])

    def flat(self) -> tuple[int, ...]:
        """All sources, `stride` of each layer, as the runtime takes them; a layer with fewer heads is filled up."""
        return tuple(
            source
            for layer, sources in enumerate(self.sources)
            for source in (*sources, *(self.stride * layer + head for head in range(len(sources), self.stride)))
        )

    def order(self, layer: int) -> tuple[Group, ...]:
        """The groups of a layer in the order of an SA file: own ones, followers by their source, dropped ones.

        So the heads that are computed, and those that follow the same layer, lie beside each other.
        """
        rank = {"own": 0, "follow": 1, "drop": 2}
        return tuple(sorted(self.groups(layer), key=lambda group: (rank[self.action(group)], self.of(group), group)))

    def in_file_order(self) -> "AttentionMap":
        """Return the map with the heads numbered as they lie in an SA file."""
        place: dict[int, int] = {}
        for layer in range(self.n_layer):
            if self.n_head_kv[layer]:
                heads = [head for group in self.order(layer) for head in self.heads(group)]
                place |= {self.stride * layer + head: self.stride * layer + i for i, head in enumerate(heads)}
        sources = tuple(
            tuple(place.get(source, source) for group in self.order(layer) for source in self.of(group))
            if self.n_head_kv[layer]
            else self.sources[layer]
            for layer in range(self.n_layer)
        )
        return replace(self, sources=sources)


def dense_map(n_head: Sequence[int], n_head_kv: Sequence[int]) -> AttentionMap:
    """Return the map in which every group computes its own attention weights."""
    stride = max(n_head)
    return AttentionMap(tuple(n_head_kv), tuple(_own(layer, n, stride) for layer, n in enumerate(n_head)))


def of_layers(dense: AttentionMap, source_layers: SourceMap) -> AttentionMap:
    """Return the map that shares whole layers."""
    stride = dense.stride
    sources = (_own(source, len(dense.sources[layer]), stride) for layer, source in enumerate(source_layers))
    return replace(dense, sources=tuple(sources))


def without_layers(found: AttentionMap, layers: Iterable[int]) -> AttentionMap:
    """Return the map with all groups of these layers dropped."""
    for layer in layers:
        for group in found.groups(layer):
            found = found.with_drop(group)
    return found


def of_flat(dense: AttentionMap, flat: Sequence[int]) -> AttentionMap:
    """Return the map of a list of `stride` sources per layer: the opposite of AttentionMap.flat(). Raises BadSpans."""
    stride = dense.stride
    if len(flat) != stride * dense.n_layer:
        raise BadSpans(f"has {len(flat)} entries, the model has {dense.n_layer} layers of {stride} heads", field="map")
    rows = (tuple(flat[stride * layer : stride * layer + len(own)]) for layer, own in enumerate(dense.sources))
    found = replace(dense, sources=tuple(rows))
    check(found)
    return found


def check(found: AttentionMap) -> None:
    """Raises BadSpans with the layer and the head if the map breaks a rule; the runtime has the same rules."""
    for layer in found.touched:
        if not found.n_head_kv[layer] or len(found.sources[layer]) % found.n_head_kv[layer]:
            raise BadSpans("has no groups of heads that could share", field=f"map: layer {layer}")
        for group in found.groups(layer):
            _check_group(found, group)


def _check_group(found: AttentionMap, group: Group) -> None:
    stride, sources = found.stride, found.of(group)
    own = _own(group.layer, found.heads(group).stop, stride)[found.heads(group).start :]
    field = f"map: group {group}"
    if sources == own or set(sources) == {DROPPED}:
        return
    for source in sources:
        layer, head = divmod(source, stride)
        if source < 0 or layer >= group.layer:
            raise BadSpans(f"source {source} is not a head of an earlier layer", field=field)
        if head >= len(found.sources[layer]) or found.sources[layer][head] != source:
            raise BadSpans(f"source {source} does not compute its own attention weights", field=field)
        if layer != sources[0] // stride:
            raise BadSpans("its heads have sources in different layers", field=field)
        if (len(found.sources[layer]), found.n_head_kv[layer]) != (
            len(found.sources[group.layer]),
            found.n_head_kv[group.layer],
        ):
            raise BadSpans(f"layer {layer} has other numbers of heads", field=field)


def _own(layer: int, n_head: int, stride: int) -> tuple[int, ...]:
    return tuple(range(stride * layer, stride * layer + n_head))


def following(found: AttentionMap) -> Iterator[tuple[Group, int]]:
    """Yield each group that follows, and the layer that it follows."""
    for group in _groups(found):
        if found.action(group) == "follow":
            yield group, found.source_layer(group)


def dropped(found: AttentionMap) -> list[Group]:
    """Return the groups that are dropped."""
    return [group for group in _groups(found) if found.action(group) == "drop"]


def _groups(found: AttentionMap) -> Iterable[Group]:
    return (group for layer in found.touched for group in found.groups(layer))
