"""The scores of source maps on text that took no part in the search: the maps found, and what they compete with.

They compete with the contiguous late span of the paper (arXiv 2407.12866) and blocks over the whole depth
(LazyFormer), which keep K for the same or a similar number of layers; with the dense model and a quantised K cache;
and with the followers' attention left away.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gguf import GGMLQuantizationType

from ..errors import BadSpans
from ..evaluation.divergence import Quality
from ..formats.gguf_header import Header
from ..model.facts import F16, Facts
from ..model.spans import SourceMap, followers, parse_spans, source_map, spans_of, spans_text
from ..plan.projections import projections
from ..system.progress import Fraction
from .beam import CostedLayers, n_followers
from .map_cost import MapCosts

QUANTISED_K = (GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0)
BLOCK_SIZES = (2, 3, 4)  # layers in a block that shares attention weights


@dataclass(frozen=True)
class ScoredMap:
    """A map of layers, and what it loses.

    Attributes:
        name: What reports call it.
        source_layers: For each layer, the layer whose attention weights it uses, itself if it computes its own.
        kv_bytes_per_token: Bytes of KV cache that one token takes.
        quality: How well it predicts.
        type_k: Type of the K cache.
    """

    name: str
    source_layers: SourceMap
    kv_bytes_per_token: int
    quality: Quality
    type_k: GGMLQuantizationType = F16


@dataclass(frozen=True)
class Scores:
    """`path`: the maps that were given. `dropped`: the last of them without any attention in its followers.

    `baselines`: what is usual. `dropped` is None where the last map has no followers.
    """

    path: tuple[ScoredMap, ...]
    dropped: ScoredMap | None
    baselines: tuple[ScoredMap, ...]


def score_maps(
    path: Sequence[CostedLayers], map_costs: MapCosts, facts: Facts, header: Header, watch: Fraction
) -> Scores:
    """Score the maps of a search, none of them with more followers than the last one, and the baselines for it."""
    dense, chosen = tuple(range(facts.n_layer)), path[-1]
    entries = [(_map_name(step.map), step.map, F16) for step in path]
    entries += [(name, usual, F16) for name, usual in _usual_maps(facts, n_followers(chosen))]
    if all(facts.n_embd_k(layer) % 32 == 0 for layer in range(facts.n_layer)):  # whole blocks of both types
        entries += [(f"dense, K cache {type_k.name.lower()}", dense, type_k) for type_k in QUANTISED_K]
    scored = []
    for i, (name, source_layers, type_k) in enumerate(entries, 1):
        watch(i / (len(entries) + 1))
        attention = facts.of_layers(source_layers)
        kv_bytes = facts.kv_bytes_per_token(attention, type_k)
        scored.append(ScoredMap(name, source_layers, kv_bytes, map_costs.quality(attention, type_k), type_k))
    dropped = score_dropped(chosen.map, map_costs, facts, header) if n_followers(chosen) else None
    return Scores(tuple(scored[: len(path)]), dropped, tuple(scored[len(path) :]))


def score_dropped(source_layers: SourceMap, map_costs: MapCosts, facts: Facts, header: Header) -> ScoredMap:
    """Score the dense model without any attention in the followers, so that their K and V need not be kept."""
    dense = tuple(range(facts.n_layer))
    layers = followers(source_layers)
    zeros = map_costs.zeros(projections(header, facts, layer).output for layer in layers)
    kv_bytes = facts.kv_bytes_per_token(facts.attention, without=layers)
    quality = map_costs.quality(facts.attention, changes=zeros)
    return ScoredMap("no attention in these layers", dense, kv_bytes, quality)


def _map_name(source_layers: SourceMap) -> str:
    return spans_text(spans_of(source_layers)) or "dense"


def _usual_maps(facts: Facts, n: int) -> Iterator[tuple[str, SourceMap]]:
    """Yield the paper's late span with that number of followers, which leaves the last layer out, and blocks."""
    texts = [(f"every:{size}", f"every:{size}") for size in BLOCK_SIZES]
    source = facts.n_layer - facts.n_layer_nextn - 2 - n
    if n and source >= 0:
        late = f"{source}-{source + n}"
        texts.insert(0, (f"late span: {late}", late))
    for name, text in texts:
        try:
            found = source_map(parse_spans(text, facts.n_layer, is_swa=facts.is_swa), facts.n_layer)
        except BadSpans:  # where sliding windows and full attention mix, or the layers are too few
            continue
        if all(facts.n_head[source] == facts.n_head[layer] for layer, source in enumerate(found)):
            yield name, found
