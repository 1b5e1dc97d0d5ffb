"""How much of what a machine can do the models use: bytes per second in decode, operations per second in attention."""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from ..model.costs import attention_flops, decode_bytes
from .measure import Measured
from .settings import cache_type


@dataclass(frozen=True)
class Use:
    """What each setting uses of a limit.

    Attributes:
        what: "decode", which reads weights and KV cache, or "prefill attention", which multiplies.
        depth: Number of tokens in the context.
        unit: "bytes/s" or "FLOP/s".
        values: The median of each setting.
        limit: What the machine can do.
    """

    what: str
    depth: int
    unit: str
    values: dict[str, float]
    limit: float


def uses(measured: Measured) -> list[Use]:
    """Return what the settings use of the limits; nothing where other things limit a model.

    These are a GPU, experts, of which a token reads some, and sliding windows.
    """
    pair = measured.pair
    if any(pair.facts.is_swa) or pair.weights.has_experts or measured.request.gpu_layers:
        return []
    return [*_decode(measured), *_prefill_attention(measured)]


def _decode(measured: Measured) -> Iterator[Use]:
    request, pair = measured.request, measured.pair
    types = cache_type(request.type_k), cache_type(request.type_v)
    for (what, depth), seconds in sorted(measured.seconds.items()):
        if what == "decode":
            dense = decode_bytes(pair.facts, pair.facts.attention, pair.weights.n_bytes, depth, *types)
            shared = decode_bytes(pair.facts, pair.sa_facts.attention, pair.sa_weights.n_bytes, depth, *types)
            values = {
                setting.name: (shared if setting.shared else dense) / median(seconds[setting.name])
                for setting in measured.settings
            }
            yield Use(what, depth, "bytes/s", values, measured.limits.read)


def _prefill_attention(measured: Measured) -> Iterator[Use]:
    """Of layers that compute their own attention weights."""
    facts, n_tokens = measured.pair.facts, measured.request.prompt
    for (what, depth), seconds in sorted(measured.attention.items()):
        if what == "prefill" and _own(measured):
            flops = {layer: attention_flops(facts, facts.attention, layer, n_tokens, depth) for layer in _own(measured)}
            values = {
                setting.name: median(
                    median(flops[layer] / by_layer[layer] for layer in flops) for by_layer in seconds[setting.name]
                )
                for setting in measured.settings
            }
            yield Use("prefill attention", depth, "FLOP/s", values, measured.limits.flops)


def _own(measured: Measured) -> list[int]:
    facts, touched = measured.pair.facts, measured.pair.sa_facts.attention.touched
    n_layer = facts.n_layer - facts.n_layer_nextn
    return [layer for layer in range(n_layer) if facts.n_head_kv[layer] and layer not in touched]
