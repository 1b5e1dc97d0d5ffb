"""Attention maps as text: what --spans and --drop take, and what is shown of a map.

    parse_map("6-9", None, dense, is_swa)                 # layers, as spans.py reads them
    parse_map("6.0:7.1+8.0", None, dense, is_swa)         # KV group 0 of layer 6 computes; two groups follow it
    parse_map(None, "24,27.0-1", dense, is_swa)           # layer 24 and two groups of layer 27 are dropped

A group is written LAYER.NUMBER. Its query heads follow the query heads of its source in their order. Other maps, in
which heads of one group follow heads of several, have no text; they come from a file.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence

from ..errors import BadSpans
from .attention_map import AttentionMap, Group, check, dropped, following, of_layers
from .spans import SourceMode, parse_spans, runs, source_map, spans_of, spans_text

SYNTAX = "use L.G:L.G+L.G, for example 6.0:7.1+8.0"
DROP_SYNTAX = "use layers and KV groups, for example 24,27.0-1"
_GROUP = re.compile(r"([0-9]{1,6})\.([0-9]{1,6})(?:-([0-9]{1,6}))?")
_LAYERS = re.compile(r"([0-9]{1,6})(?:-([0-9]{1,6}))?")


def parse_map(
    spans: str | None, drop: str | None, dense: AttentionMap, source: SourceMode, is_swa: Sequence[bool]
) -> AttentionMap:
    """Return the map of a dense model that --spans and --drop describe. Raises BadSpans."""
    found = dense
    parts = [part.strip() for part in spans.split(",")] if spans is not None else []
    layers = [part for part in parts if "." not in part]
    if layers:
        found = of_layers(
            dense, source_map(parse_spans(",".join(layers), dense.n_layer, source, is_swa), dense.n_layer)
        )
    for part in parts:
        if "." in part:
            found = _with_span(found, part)
    for group in _dropped(drop, dense):
        found = _changed(found, group, f"--drop {drop}").with_drop(group)
    check(found)
    return found


def _with_span(found: AttentionMap, part: str) -> AttentionMap:
    head, colon, tail = part.partition(":")
    source, *more = _groups(head, found, f"span '{part}'", SYNTAX)
    if not colon or more:
        raise BadSpans("cannot be read", field=f"span '{part}'", next_step=SYNTAX)
    for item in tail.split("+"):
        for group in _groups(item, found, f"span '{part}'", SYNTAX):
            found = _changed(found, group, f"span '{part}'").with_follow(group, source)
    return found


def _changed(found: AttentionMap, group: Group, field: str) -> AttentionMap:
    if found.action(group) != "own":
        raise BadSpans(f"group {group} has another action already", field=field)
    return found


def _dropped(drop: str | None, dense: AttentionMap) -> Iterator[Group]:
    for item in drop.split(",") if drop is not None else ():
        if "." in item:
            yield from _groups(item, dense, f"--drop {drop}", DROP_SYNTAX)
            continue
        if not (match := _LAYERS.fullmatch(item.strip())):
            raise BadSpans("cannot be read", field=f"--drop {drop}", next_step=DROP_SYNTAX)
        for layer in range(int(match[1]), int(match[2] or match[1]) + 1):
            _check_layer(layer, dense, f"--drop {drop}")
            yield from dense.groups(layer)


def _groups(item: str, dense: AttentionMap, field: str, syntax: str) -> list[Group]:
    if not (match := _GROUP.fullmatch(item.strip())):
        raise BadSpans("cannot be read", field=field, next_step=syntax)
    layer, first = int(match[1]), int(match[2])
    _check_layer(layer, dense, field)
    last = int(match[3] or first)
    if not first <= last < dense.n_head_kv[layer]:
        next_step = f"layer {layer} has groups 0-{dense.n_head_kv[layer] - 1}"
        raise BadSpans(f"group {layer}.{last} is out of range", field=field, next_step=next_step)
    return [Group(layer, number) for number in range(first, last + 1)]


def _check_layer(layer: int, dense: AttentionMap, field: str) -> None:
    if layer >= dense.n_layer:
        next_step = f"this model has layers 0-{dense.n_layer - 1}"
        raise BadSpans(f"layer {layer} is out of range", field=field, next_step=next_step)


def map_text(found: AttentionMap) -> str:
    """Return one line of text for a map: its spans, then what is dropped. Parts that no option takes are in words."""
    return " without ".join(filter(None, (sharing_text(found), drop_text(found)))) or "dense"


def sharing_text(found: AttentionMap) -> str:
    """Return what shares, as --spans takes it, or in words where it cannot."""
    if found.source_layers is not None:
        return spans_text(spans_of(found.source_layers))
    by_source: dict[Group, list[Group]] = {}
    others = 0
    for group, layer in following(found):
        for source in found.groups(layer):
            if found.with_follow(group, source).of(group) == found.of(group):
                by_source.setdefault(source, []).append(group)
                break
        else:
            others += 1
    parts = [f"{source}:{'+'.join(map(str, groups))}" for source, groups in sorted(by_source.items())]
    return ",".join([*parts, *([f"{others} groups by head"] if others else [])])


def map_options(found: AttentionMap, dense: AttentionMap, is_swa: Sequence[bool]) -> tuple[str, ...] | None:
    """Return the options that give this map of a dense model; None if only --map can."""
    sharing, dropping = sharing_text(found) or None, drop_text(found) or None
    try:
        if parse_map(sharing, dropping, dense, "first", is_swa) != found:
            return None
    except BadSpans:
        return None
    spans = ("--spans", sharing) if sharing else ()
    return (*spans, *(("--drop", dropping) if dropping else ()))


def drop_text(found: AttentionMap) -> str:
    """Return what is dropped, as --drop takes it."""
    numbers: dict[int, list[int]] = {}
    for group in dropped(found):
        numbers.setdefault(group.layer, []).append(group.number)
    whole = [layer for layer, dropped_here in numbers.items() if len(dropped_here) == found.n_head_kv[layer]]
    single = [f"{layer}.{run}" for layer in numbers if layer not in whole for run in runs(numbers[layer])]
    return ",".join([*runs(whole), *single])


def in_words(found: AttentionMap, layer: int) -> str:
    """Return what the groups of a layer do: '2 groups compute, 1 follows layer 6'."""
    parts = []
    if own := len(found.of_action(layer, "own")):
        parts.append(f"{own} compute")
    by_source: dict[int, int] = {}
    for group in found.of_action(layer, "follow"):
        by_source[found.source_layer(group)] = by_source.get(found.source_layer(group), 0) + 1
    parts += [f"{n} follow layer {source}" for source, n in sorted(by_source.items())]
    if gone := len(found.of_action(layer, "drop")):
        parts.append(f"{gone} dropped")
    return ", ".join(parts)


def short_text(found: AttentionMap) -> str:
    """Return a text for names: that of map_text() where whole layers share, else a count and a hash of the map."""
    if found.source_layers is not None:
        return map_text(found)
    digest = hashlib.sha256(repr(found.sources).encode()).hexdigest()[:8]
    n_followers = sum(1 for _ in following(found))
    return f"{n_followers}follow{len(dropped(found))}drop-{digest}"
