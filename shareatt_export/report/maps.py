"""Attention maps as rows of layers: what each KV group does, what that saves, and what is known of the group alone."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..errors import BadSpans
from ..model.attention_map import Action, AttentionMap, Group, check, dense_map, of_layers
from .values import Record
from .words import counted, number

Unit = Literal["group", "query head", "layer"]
F16_BYTES = 2
LABELS: Mapping[Action, str] = {"own": "own", "follow": "← {source}", "drop": "\N{MULTIPLICATION SIGN}"}


@dataclass(frozen=True)
class Shape:
    """The KV heads of each layer, and the numbers in the K and the V of one of them."""

    n_head_kv: tuple[int, ...]
    head_dim_k: int
    head_dim_v: int


@dataclass(frozen=True)
class UnitMap:
    """A map of KV groups; of query heads or of layers, where an older file does not tell the groups."""

    attention: AttentionMap
    unit: Unit
    shape: Shape | None


@dataclass
class Alone:
    """What is known of single layers and groups: KL divergences, and errors of the attention output.

    `group_drops`, `layer_drops`: KL if it is dropped alone. `layer_follows`: KL if the layer follows its best source
    alone. `errors`: by source and follower, the error with the source's weights; `drop_errors`: without attention.
    """

    group_drops: dict[tuple[int, int], float] = field(default_factory=dict)
    layer_drops: dict[int, float] = field(default_factory=dict)
    layer_follows: dict[int, float] = field(default_factory=dict)
    errors: dict[tuple[int, int], float] = field(default_factory=dict)
    drop_errors: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """A group: its action, the few characters that are shown of it, and all that is known of it in words."""

    action: Action
    label: str
    words: str


@dataclass(frozen=True)
class Layer:
    number: int
    cells: tuple[Cell, ...]


def read_shape(record: Record) -> Shape | None:
    """Return the shape of the dense model, if the file has it. Raises BadInput where it is none."""
    shape = record.only_record("shape")
    heads, k, v = shape.integers("n_head_kv"), shape.integer("head_dim_k"), shape.integer("head_dim_v")
    return None if heads is None or k is None or v is None else Shape(heads, k, v)


def read_map(record: Record, shape: Shape | None) -> UnitMap | None:
    """Return the map of an object, None if it has none. Raises BadInput where it is no map of such a model."""
    unit: Unit
    if rows := record.integer_rows("source_heads"):
        key, unit = "source_heads", _unit(shape)
        attention = AttentionMap(shape.n_head_kv if shape else tuple(map(len, rows)), rows)
    elif layers := record.integers("source_layers"):
        key, unit = "source_layers", "layer"
        attention = of_layers(dense_map([1] * len(layers), [1] * len(layers)), layers)
    else:
        return None
    if len(attention.n_head_kv) != attention.n_layer:
        raise record.wrong(key, f"has {attention.n_layer} layers, but the model has {len(attention.n_head_kv)}")
    try:
        check(attention)
    except BadSpans as error:
        raise record.wrong(key, f"{error.field}: {error.reason}") from None
    return UnitMap(attention, unit, shape)


def _unit(shape: Shape | None) -> Unit:
    return "group" if shape else "query head"


def add_alone(alone: Alone, record: Record) -> None:
    """Add what a file knows of single groups and layers."""
    for drop in record.records("kl_of_single_drops"):
        layer, groups, kl = drop.integer("layer"), drop.integers("groups"), drop.number("kl")
        if layer is None or not groups or kl is None:
            continue
        if len(groups) == 1:
            alone.group_drops[layer, groups[0]] = kl
        else:
            alone.layer_drops[layer] = kl
    follows = record.numbers_by_name("kl_of_single_followers")
    alone.layer_follows |= {int(layer): kl for layer, kl in follows.items() if layer.isdecimal()}
    for pair in record.records("pairs"):
        source, follower, error = pair.integer("source"), pair.integer("follower"), pair.number("error")
        if source is not None and follower is not None and error is not None:
            alone.errors[source, follower] = error
            if (without := pair.number("drop_error")) is not None:
                alone.drop_errors[follower] = without


def layers(found: UnitMap, alone: Alone) -> Iterator[Layer]:
    """Yield the layers that have attention."""
    attention = found.attention
    for number_ in range(attention.n_layer):
        if groups := attention.groups(number_):
            yield Layer(number_, tuple(_cell(found, group, alone) for group in groups))


def summary(found: UnitMap) -> str:
    """Return how many groups there are of each action."""
    attention = found.attention
    count = {
        action: sum(len(attention.of_action(layer, action)) for layer in range(attention.n_layer)) for action in LABELS
    }
    units = {"group": "KV group", "query head": "query head", "layer": "layer"}[found.unit]
    return (
        f"{counted(count['own'], units)} with attention weights of their own, "
        f"{count['follow']} following, {count['drop']} dropped"
    )


def _cell(found: UnitMap, group: Group, alone: Alone) -> Cell:
    action = found.attention.action(group)
    source = found.attention.source_layer(group) if action == "follow" else None
    words = [*_action_words(found, group, action), *_bytes_words(found, action), *_alone_words(found, group, alone)]
    return Cell(action, LABELS[action].format(source=source), " ".join(words))


def _action_words(found: UnitMap, group: Group, action: Action) -> Iterator[str]:
    name = f"Layer {group.layer}" + (f", {found.unit} {group.number}" if found.unit != "layer" else "")
    if action == "own":
        yield f"{name} computes its attention weights."
    elif action == "drop":
        yield f"{name} is dropped."
    else:
        heads = " ".join(str(source % found.attention.stride) for source in found.attention.of(group))
        of_heads = f"query heads {heads} of " if found.unit != "layer" else ""
        yield f"{name} follows {of_heads}layer {found.attention.source_layer(group)}."


def _bytes_words(found: UnitMap, action: Action) -> Iterator[str]:
    if found.shape is None or found.unit != "group":
        return
    k, v = F16_BYTES * found.shape.head_dim_k, F16_BYTES * found.shape.head_dim_v
    yield {
        "own": f"It takes {k + v} bytes of KV cache per token.",
        "follow": f"That saves {k} bytes of KV cache per token, its K.",
        "drop": f"That saves {k + v} bytes of KV cache per token, its K and V.",
    }[action]


def _alone_words(found: UnitMap, group: Group, alone: Alone) -> Iterator[str]:
    layer, action = group.layer, found.attention.action(group)
    if found.unit == "group" and (kl := alone.group_drops.get((layer, group.number))) is not None:
        yield f"This group dropped alone: KL {number(kl)}."
    if (kl := alone.layer_drops.get(layer)) is not None:
        yield f"The whole layer dropped alone: KL {number(kl)}."
    if (kl := alone.layer_follows.get(layer)) is not None:
        yield f"The whole layer following alone: KL {number(kl)}."
    if action == "follow":
        source = found.attention.source_layer(group)
        if (error := alone.errors.get((source, layer))) is not None:
            yield f"Error of the layer's attention output with the weights of layer {source}: {number(error)}."
    if (error := alone.drop_errors.get(layer)) is not None:
        yield f"Error without attention in the layer: {number(error)}."
