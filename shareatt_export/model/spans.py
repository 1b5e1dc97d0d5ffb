"""Spans: groups of layers that share one set of attention weights, as text and as a source map.

    parse_spans("6-9", n_layer=12)                          # layer 6 computes, layers 7, 8, 9 reuse
    parse_spans("7-9", n_layer=12, source="previous")       # the same, in the notation of the authors' code
    parse_spans("6:7-9", n_layer=12)                        # the same, explicit
    parse_spans("2:4+6-7", n_layer=12)                      # layer 2 computes, layers 4, 6, 7 reuse
    parse_spans("every:3", n_layer=12)                      # 0-2, 3-5, 6-8, 9-11 (LazyFormer's blocks)

Attention weights over a sliding window do not fit a layer that attends to all tokens. In models with both kinds of
layers, a range therefore shares within each kind: its first layer of a kind is the source of that kind.

A source map has one entry per layer: the layer whose attention weights it uses, or itself if it computes its own.
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

AUTO = "auto"  # the value of --spans that lets a search choose
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
        """Return the shortest text that parse_spans reads back: 6-9, or 2:4+6-7 for a span with gaps."""
        layers = (self.source, *self.followers)
        if layers == tuple(range(self.source, layers[-1] + 1)):
            return f"{self.source}-{layers[-1]}"
        return f"{self.source}:{'+'.join(runs(self.followers))}"

    def in_words(self) -> str:
        """Return a sentence: 'layer 6 computes; layers 7, 8 and 9 reuse its attention weights'."""
        *head, last = map(str, self.followers)
        if not head:
            return f"layer {self.source} computes; layer {last} reuses its attention weights"
        return f"layer {self.source} computes; layers {', '.join(head)} and {last} reuse its attention weights"


def runs(layers: Iterable[int]) -> list[str]:
    """Return texts of ascending layers, those without gaps as a range: 4, 6-7."""
    found: list[list[int]] = []
    for layer in layers:
        if found and found[-1][-1] == layer - 1:
            found[-1].append(layer)
        else:
            found.append([layer])
    return [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in found]


def parse_spans(
    text: str, n_layer: int, source: SourceMode = "first", is_swa: Sequence[bool] | None = None
) -> tuple[Span, ...]:
    """Parse the text of --spans for a model of `n_layer` layers.

    `is_swa` says which layers have a sliding window. Returns the spans in the order of their sources. Raises BadSpans
    if the text cannot be read or does not fit the model.
    """
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
            raise BadSpans(
                "no span has two layers of one kind (sliding window or full attention)", field=f"spans '{text}'"
            )
    return tuple(sorted(spans, key=lambda span: span.source))


def _within_kinds(span: Span, is_swa: Sequence[bool], explicit: bool) -> list[Span]:
    layers = (span.source, *span.followers)
    groups = [tuple(layer for layer in layers if is_swa[layer] == kind) for kind in (False, True)]
    if explicit and all(groups):
        other = groups[1 - is_swa[span.source]][0]
        raise BadSpans(f"only one of the layers {span.source} and {other} has a sliding window", field=f"span '{span}'")
    return [Span(group[0], group[1:]) for group in groups if len(group) > 1]


def _blocks(size: int, n_layer: int) -> list[Span]:
    if not 2 <= size <= n_layer:
        raise BadSpans(f"the block size must be 2 to {n_layer} for this model", field=f"spans 'every:{size}'")
    starts = range(0, n_layer - 1, size)  # a last block of one layer shares nothing
    return [Span(start, tuple(range(start + 1, min(start + size, n_layer)))) for start in starts]


def _span(part: str, source: SourceMode, n_layer: int) -> Span:
    head, colon, tail = part.partition(":")
    if colon:
        if not re.fullmatch(_NUMBER, head):
            raise BadSpans("cannot be read", field=f"span '{part}'", next_step=SYNTAX)
        followers = tuple(layer for item in tail.split("+") for layer in _range(item, part, n_layer))
        return Span(int(head), followers)
    layers = tuple(_range(part, part, n_layer))
    if len(layers) < 2:
        layer = layers[0]
        next_step = f"write {layer}-{layer + 1} or {layer}:{layer + 1}"
        raise BadSpans("one layer shares nothing", field=f"span '{part}'", next_step=next_step)
    if source == "first":
        return Span(layers[0], layers[1:])
    if layers[0] == 0:
        raise BadSpans("layer 0 has no previous layer to reuse", field=f"span '{part}'")
    return Span(layers[0] - 1, layers)


def _range(item: str, part: str, n_layer: int) -> range:
    match = _RANGE.fullmatch(item)
    if not match:
        raise BadSpans("cannot be read", field=f"span '{part}'", next_step=SYNTAX)
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise BadSpans("reversed", field=f"span '{part}'", next_step=f"write {last}-{first}")
    if last >= n_layer:
        outside = max(first, n_layer)
        raise _out_of_range(outside, part, n_layer)
    return range(first, last + 1)


def _out_of_range(layer: int, span: str, n_layer: int) -> BadSpans:
    next_step = f"this model has layers 0-{n_layer - 1}"
    return BadSpans(f"layer {layer} is out of range", field=f"span '{span}'", next_step=next_step)


def _check(spans: list[Span], n_layer: int) -> None:
    for span in spans:
        layers = (span.source, *span.followers)
        if outside := [layer for layer in layers if layer >= n_layer]:
            raise _out_of_range(outside[0], str(span), n_layer)
        if any(b <= a for a, b in pairwise(layers)):
            raise BadSpans(
                "each follower must come after its source and after the one before it", field=f"span '{span}'"
            )
    for a, b in pairwise(spans):
        if b.source < a.source:
            raise BadSpans("not in ascending order", field=f"spans '{a}' and '{b}'")
    owner: dict[int, Span] = {}
    for span in spans:
        for layer in (span.source, *span.followers):
            if layer in owner:
                raise BadSpans(f"overlap in layer {layer}", field=f"spans '{owner[layer]}' and '{span}'")
            owner[layer] = span


def spans_text(spans: Iterable[Span]) -> str:
    """Return the text of the spans, which parse_spans reads back."""
    return ",".join(map(str, spans))


def source_map(spans: Iterable[Span], n_layer: int) -> SourceMap:
    """Return the source map of a model of `n_layer` layers that shares attention in these spans."""
    source_of = {follower: span.source for span in spans for follower in span.followers}
    return tuple(source_of.get(layer, layer) for layer in range(n_layer))


def spans_of(source_layers: SourceMap) -> tuple[Span, ...]:
    """Return the spans of a source map. Raises BadSpans if the map breaks an invariant."""
    found: dict[int, list[int]] = {}  # followers by source
    for layer, source in enumerate(source_layers):
        if not 0 <= source <= layer:
            raise BadSpans(f"source {source} is not a layer at or before it", field=f"source map: layer {layer}")
        if source_layers[source] != source:
            reason = f"source {source} does not compute its own attention weights"
            raise BadSpans(reason, field=f"source map: layer {layer}")
        if source != layer:
            found.setdefault(source, []).append(layer)
    return tuple(Span(source, tuple(layers)) for source, layers in sorted(found.items()))


def extended(before: SourceMap, spans: Iterable[Span]) -> SourceMap:
    """Return the source map of a model that gets further spans. Raises BadSpans if they change its own spans."""
    sources = {before[layer] for layer in followers(before)}
    for span in spans:
        for layer in (span.source, *span.followers):
            if before[layer] != layer:
                reason = f"layer {layer} reuses the attention weights of layer {before[layer]} already"
                raise BadSpans(reason, field=f"span '{span}'")
        for layer in span.followers:
            if layer in sources:
                reason = f"layer {layer} cannot be a follower, other layers reuse its attention weights"
                raise BadSpans(reason, field=f"span '{span}'")
    new = source_map(spans, len(before))
    return tuple(source if source != layer else new[layer] for layer, source in enumerate(before))


def added(before: SourceMap, after: SourceMap) -> tuple[Span, ...]:
    """Return the spans that `after` has beyond `before`: extended(before, added(before, after)) == after."""
    new = tuple(layer if before[layer] == source else source for layer, source in enumerate(after))
    return spans_of(new)


def followers(source_layers: SourceMap) -> list[int]:
    """Return the layers that reuse the attention weights of another layer."""
    return [layer for layer, source in enumerate(source_layers) if source != layer]
