"""The scores of maps of KV groups on text that took no part in the search: the map found, and what it competes with.

It competes with the best simple maps that take as few bytes, and with a quantised K cache, which can be added to any
map: with both, the map takes fewer bytes still.
"""

from dataclasses import dataclass

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from ..evaluation.divergence import Quality
from ..model.attention_map import AttentionMap
from ..model.facts import F16, Facts
from ..system.progress import Fraction
from .group_maps import BestMaps
from .map_cost import MapCosts
from .scoring import QUANTISED_K


@dataclass(frozen=True)
class ScoredAttention:
    """A map of KV groups with a type of K cache, and what it loses.

    Attributes:
        name: What reports call it.
        attention: The map; `map_text` of `shareatt_export.model.map_text` writes it as a text.
        type_k: The type of the K cache.
        kv_bytes_per_token: Bytes of KV cache that one token takes.
        quality: How well it predicts.
    """

    name: str
    attention: AttentionMap
    type_k: GGMLQuantizationType
    kv_bytes_per_token: int
    quality: Quality


@dataclass(frozen=True)
class GroupScores:
    """The scores of the map that a search over KV groups found, and of what competes with it.

    Attributes:
        dense: The dense model.
        chosen: The map that was found.
        simple: Maps in which only KV groups, or only whole layers, are dropped or share.
        quantised: The dense model and the chosen map with quantised K caches.
    """

    dense: ScoredAttention
    chosen: ScoredAttention
    simple: tuple[ScoredAttention, ...]
    quantised: tuple[ScoredAttention, ...]

    @property
    def as_good(self) -> tuple[ScoredAttention, ...]:
        """What takes no more bytes than the chosen map, and loses no more on this text."""
        chosen = self.chosen
        return tuple(
            each
            for each in (*self.simple, *self.quantised)
            if each.quality.kl.value <= chosen.quality.kl.value
            and each.kv_bytes_per_token <= chosen.kv_bytes_per_token
            and (each.attention, each.type_k) != (chosen.attention, chosen.type_k)
        )


def score_attention(found: BestMaps, map_costs: MapCosts, facts: Facts, watch: Fraction) -> GroupScores:
    """Score the maps that a search found, and quantised K caches where a head is whole blocks of their type."""
    dense, chosen = facts.dense_attention, found.best.map
    entries = [("dense", dense, F16), ("found", chosen, F16)]
    entries += [(name, each.map, F16) for name, each in found.simple.items()]
    types = [type_k for type_k in QUANTISED_K if facts.head_dim_k % GGML_QUANT_SIZES[type_k][0] == 0]
    entries += [
        (f"{name}, K cache {type_k.name.lower()}", attention, type_k)
        for name, attention in (("dense", dense), ("found", chosen))
        for type_k in types
    ]
    scored = []
    for i, (name, attention, type_k) in enumerate(entries):
        watch(i / len(entries))
        quality = map_costs.quality(attention, type_k)
        kv_bytes = facts.kv_bytes_per_token(attention, type_k)
        scored.append(ScoredAttention(name, attention, type_k, kv_bytes, quality))
    n_simple = len(found.simple)
    return GroupScores(scored[0], scored[1], tuple(scored[2 : 2 + n_simple]), tuple(scored[2 + n_simple :]))
