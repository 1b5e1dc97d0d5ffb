"""Spans: which layers share one set of attention weights, from their text to the source map.

    parse_spans("6-9", n_layer=12)                          # layer 6 computes, layers 7, 8, 9 reuse
    parse_spans("7-9", n_layer=12, source="previous")       # the same, as the authors' published code writes it
    parse_spans("6:7-9", n_layer=12)                        # the same, explicit
    parse_spans("2:4+6-7", n_layer=12)                      # layer 2 computes, layers 4, 6, 7 reuse
    parse_spans("every:3", n_layer=12)                      # 0-2, 3-5, 6-8, 9-11 (LazyFormer's blocks)

Attention weights over a sliding window say nothing about a layer that attends to everything, so in models that mix the
two a range shares within each: its first layer of either kind is the source of that kind.

A source map has one entry per layer: the layer whose attention weights it uses, itself if it computes its own.
Its invariants are map[i] <= i and map[map[i]] == map[i].
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from ..errors import BadSpans

SourceMode = Literal["first", "previous"]
SourceMap = tuple[int, ...]

AUTO = "auto"  # spans that a search finds
SYNTAX = "use A-B, S:F-G, S:F+G or every:K, separated by commas"
_NUMBER = r"[0-9]{1,6}"
_RANGE = re.compile(rf"({_NUMBER})(?:-({_NUMBER}))?")
_EVERY = re.compile(rf"every:({_NUMBER})")


@dataclass(frozen=True)
class Span:
    """A source layer and the followers that reuse its attention weights."""

    source: int
    followers: tuple[int, ...]

    def __str__(self) -> str:
        """The shortest text that parse_spans reads back: 6-9, or 2:4+6-7 where layers are left out."""
        layers = (self.source, *self.followers)
        if layers == tuple(range(self.source, layers[-1] + 1)):
            return f"{self.source}-{layers[-1]}"
        return f"{self.source}:{'+'.join(_runs(self.followers))}"

    def in_words(self) -> str:
        """'layer 6 computes; layers 7, 8 and 9 reuse its attention weights'"""
        *head, last = map(str, self.followers)
        if not head:
            return f"layer {self.source} computes; layer {last} reuses its attention weights"
        return f"layer {self.source} computes; layers {', '.join(head)} and {last} reuse its attention weights"


def _runs(layers: tuple[int, ...]) -> list[str]:
    runs: list[list[int]] = []
    for layer in layers:
        if runs and runs[-1][-1] == layer - 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]


def parse_spans(
    text: str, n_layer: int, source: SourceMode = "first", is_swa: Sequence[bool] | None = None
) -> tuple[Span, ...]:
    """Read the text of --spans for a model of n_layer layers; is_swa says which of them slide. Raises BadSpans."""
    if every := _EVERY.fullmatch(text.strip()):
        spans, explicit = _blocks(int(every[1]), n_layer), []
    else:
        parts = [part.strip() for part in text.split(",")]
        spans = [_span(part, source, n_layer) for part in parts]
        explicit = [span for span, part in zip(spans, parts, strict=True) if ":" in part]
    _check(spans, n_layer)
    if is_swa is not None and len(set(is_swa)) > 1:
        spans = [part for span in spans for part in _within_kinds(span, is_swa, span in explicit)]
        if not spans:
            raise BadSpans(f"spans '{text}': no two layers of a span attend alike (to a sliding window, to everything)")
    return tuple(sorted(spans, key=lambda span: span.source))


def _within_kinds(span: Span, is_swa: Sequence[bool], explicit: bool) -> list[Span]:
    layers = (span.source, *span.followers)
    groups = [tuple(layer for layer in layers if is_swa[layer] == kind) for kind in (False, True)]
    if explicit and all(groups):
        other = groups[1 - is_swa[span.source]][0]
        raise BadSpans(f"span '{span}': of layers {span.source} and {other}, one attends to a sliding window only")
    return [Span(group[0], group[1:]) for group in groups if len(group) > 1]


def _blocks(size: int, n_layer: int) -> list[Span]:
    if not 2 <= size <= n_layer:
        raise BadSpans(f"spans 'every:{size}': the block size must be 2 to {n_layer} for this model")
    starts = range(0, n_layer - 1, size)  # a last block of one layer shares nothing
    return [Span(start, tuple(range(start + 1, min(start + size, n_layer)))) for start in starts]


def _span(part: str, source: SourceMode, n_layer: int) -> Span:
    head, colon, tail = part.partition(":")
    if colon:
        if not re.fullmatch(_NUMBER, head):
            raise BadSpans(f"span '{part}': cannot be read; {SYNTAX}")
        followers = tuple(layer for item in tail.split("+") for layer in _range(item, part, n_layer))
        return Span(int(head), followers)
    layers = tuple(_range(part, part, n_layer))
    if len(layers) < 2:
        layer = layers[0]
        raise BadSpans(f"span '{part}': one layer shares nothing; write {layer}-{layer + 1} or {layer}:{layer + 1}")
    if source == "first":
        return Span(layers[0], layers[1:])
    if layers[0] == 0:
        raise BadSpans(f"span '{part}': layer 0 has no previous layer to reuse")
    return Span(layers[0] - 1, layers)


def _range(item: str, part: str, n_layer: int) -> range:
    match = _RANGE.fullmatch(item)
    if not match:
        raise BadSpans(f"span '{part}': cannot be read; {SYNTAX}")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise BadSpans(f"span '{part}': reversed; write {last}-{first}")
    if last >= n_layer:
        outside = max(first, n_layer)
        raise BadSpans(f"span '{part}': layer {outside} is out of range; this model has layers 0-{n_layer - 1}")
    return range(first, last + 1)


def _check(spans: list[Span], n_layer: int) -> None:
    for span in spans:
        layers = (span.source, *span.followers)
        if outside := [layer for layer in layers if layer >= n_layer]:
            raise BadSpans(f"span '{span}': layer {outside[0]} is out of range; this model has layers 0-{n_layer - 1}")
        if any(b <= a for a, b in pairwise(layers)):
            raise BadSpans(f"span '{span}': each follower must come after its source and after the one before it")
    for a, b in pairwise(spans):
        if b.source < a.source:
            raise BadSpans(f"spans '{a}' and '{b}': not in ascending order")
    owner: dict[int, Span] = {}
    for span in spans:
        for layer in (span.source, *span.followers):
            if layer in owner:
                raise BadSpans(f"spans '{owner[layer]}' and '{span}': overlap in layer {layer}")
            owner[layer] = span


def source_map(spans: Iterable[Span], n_layer: int) -> SourceMap:
    source_of = {follower: span.source for span in spans for follower in span.followers}
    return tuple(source_of.get(layer, layer) for layer in range(n_layer))


def spans_of(source_layers: SourceMap) -> tuple[Span, ...]:
    """The inverse of source_map. Raises BadSpans if the map breaks an invariant."""
    followers: dict[int, list[int]] = {}
    for layer, source in enumerate(source_layers):
        if not 0 <= source <= layer:
            raise BadSpans(f"source map: layer {layer}: source {source} is not a layer at or before it")
        if source_layers[source] != source:
            raise BadSpans(f"source map: layer {layer}: source {source} does not compute its own attention weights")
        if source != layer:
            followers.setdefault(source, []).append(layer)
    return tuple(Span(source, tuple(layers)) for source, layers in sorted(followers.items()))


def extended(before: SourceMap, spans: Iterable[Span]) -> SourceMap:
    """The source map of a model that gets further spans. Raises BadSpans where they touch what it shares already."""
    sources = {source for layer, source in enumerate(before) if source != layer}
    for span in spans:
        for layer in (span.source, *span.followers):
            if before[layer] != layer:
                raise BadSpans(
                    f"span '{span}': layer {layer} reuses the attention weights of layer {before[layer]} already"
                )
        for layer in span.followers:
            if layer in sources:
                raise BadSpans(
                    f"span '{span}': layer {layer} must go on computing, other layers reuse its attention weights"
                )
    new = source_map(spans, len(before))
    return tuple(theirs if theirs != layer else new[layer] for layer, theirs in enumerate(before))


def added(before: SourceMap, after: SourceMap) -> tuple[Span, ...]:
    """The spans that lead from `before` to `after`: extended(before, added(before, after)) == after."""
    new = tuple(layer if before[layer] == source else source for layer, source in enumerate(after))
    return spans_of(new)


def followers(source_layers: SourceMap) -> list[int]:
    return [layer for layer, source in enumerate(source_layers) if layer != source]


def n_followers(source_layers: SourceMap) -> int:
    return sum(source != layer for layer, source in enumerate(source_layers))
