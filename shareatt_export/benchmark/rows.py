"""Turn measurements into rows of a table: values by setting, ratios to the better dense setting, a prediction.

A ratio compares settings in the same round. The medians decide for each row which setting of the unpatched llama.cpp is
the better one.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from ..model.costs import decode_bytes, follower_decode_share, follower_prefill_share, prefill_flops
from ..model.map_text import map_text
from ..model.spans import followers
from .measure import Measured
from .settings import FLASH_ON, KERNELS, Setting, cache_type
from .uses import uses


@dataclass(frozen=True)
class Ratio:
    """The ratios of all rounds.

    Attributes:
        median: The median.
        low: The lowest ratio.
        high: The highest ratio.
    """

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """A row of the table.

    "prefill attention" and "decode attention" are the attention of one layer; in SA, that layer is a follower. "KV
    cache" and "compute buffers" are the sizes in llama.cpp's log. "peak memory" is the resident set of the worker
    process, which includes the weights that it mapped; "peak anonymous memory" does not.

    Attributes:
        what: What was measured.
        depth: Number of tokens in the context; None for memory.
        unit: "tokens/s", where a ratio above 1 is a gain, or "bytes" or "seconds", where a ratio below 1 is a gain.
        values: The median of each setting.
        baseline: The better setting of the unpatched llama.cpp, which `ratios` refer to.
        ratios: For each setting of the patched llama.cpp, its ratios to the baseline: what kernels and sharing gain.
        sharing: For each SA setting, its ratios to the dense model with the same kernels; empty without such a setting.
        predicted: What the numbers of operations and bytes predict for `sharing`.
    """

    what: str
    depth: int | None
    unit: str
    values: dict[str, float]
    baseline: str
    ratios: dict[str, Ratio]
    sharing: dict[str, Ratio]
    predicted: float | None


def rows(measured: Measured) -> list[Row]:
    """Return the rows for speed, then for attention, then for memory."""
    return [*_speeds(measured), *_attention(measured), *_memory(measured)]


def _shared_names(settings: tuple[Setting, ...]) -> list[str]:
    return [setting.name for setting in settings if setting.shared]


def _patched_names(settings: tuple[Setting, ...]) -> list[str]:
    return [setting.name for setting in settings if setting.patched]


def _stock_names(settings: tuple[Setting, ...]) -> list[str]:
    return [setting.name for setting in settings if not setting.patched]


def _speeds(measured: Measured) -> Iterator[Row]:
    for (what, depth), seconds in sorted(measured.seconds.items()):
        medians = {name: median(rounds) for name, rounds in seconds.items()}
        baseline = min(_stock_names(measured.settings), key=medians.__getitem__)
        ratios = _speedups(seconds, baseline, _patched_names(measured.settings))
        sharing = _speedups(seconds, KERNELS, _shared_names(measured.settings))
        speeds = {name: 1 / value for name, value in medians.items()}
        predicted = _predicted_speedup(measured, what, depth)
        yield Row(what, depth, "tokens/s", speeds, baseline, ratios, sharing, predicted)


def _speedups(seconds: Mapping[str, list[float]], before: str, names: list[str]) -> dict[str, Ratio]:
    """Return how many times as fast as another setting, if there is that one, settings are in the same rounds."""
    if before not in seconds:
        return {}
    return {name: _ratio([a / b for a, b in zip(seconds[before], seconds[name], strict=True)]) for name in names}


def _shares(seconds: Mapping[str, list[float]], whole: str, names: list[str]) -> dict[str, Ratio]:
    """Return which part of the time of another setting, if there is that one, settings take in the same rounds."""
    if whole not in seconds:
        return {}
    return {name: _ratio([a / b for a, b in zip(seconds[name], seconds[whole], strict=True)]) for name in names}


def _ratio(by_round: list[float]) -> Ratio:
    return Ratio(median(by_round), min(by_round), max(by_round))


def _predicted_speedup(measured: Measured, what: str, depth: int) -> float:
    request, pair = measured.request, measured.pair
    models = (pair.facts.attention, pair.weights), (pair.sa_facts.attention, pair.sa_weights)
    if what == "prefill":
        flops = [prefill_flops(pair.facts, attention, weights, request.prompt, depth) for attention, weights in models]
        return flops[0] / flops[1]
    types = cache_type(request.type_k), cache_type(request.type_v)
    read = [decode_bytes(pair.facts, attention, weights.n_bytes, depth, *types) for attention, weights in models]
    return read[0] / read[1]


def _attention(measured: Measured) -> Iterator[Row]:
    """Compare the attention of one follower with that of one dense layer: with flash attention, and with our kernels.

    A map of single KV groups has no layer to compare.
    """
    pair, request = measured.pair, measured.request
    source_layers = pair.sa_facts.attention.source_layers
    if source_layers is None:
        return
    sa_followers = followers(source_layers)
    for (what, depth), seconds in sorted(measured.attention.items()):
        median_layer: dict[str, list[float]] = {}  # by setting, one number for each round
        for setting in measured.settings:
            n_layer = pair.facts.n_layer - pair.facts.n_layer_nextn
            layers = sa_followers if setting.shared else range(n_layer)
            rounds = seconds[setting.name]
            median_layer[setting.name] = [median(by_layer[layer] for layer in layers) for by_layer in rounds]
        values = {name: median(by_round) for name, by_round in median_layer.items()}
        ratios = _shares(median_layer, FLASH_ON, _patched_names(measured.settings))
        sharing = _shares(median_layer, KERNELS, _shared_names(measured.settings))
        if what == "prefill":
            predicted = follower_prefill_share(pair.facts)
        else:
            predicted = follower_decode_share(
                pair.facts, sa_followers[0], cache_type(request.type_k), cache_type(request.type_v)
            )
        yield Row(f"{what} attention", depth, "seconds", values, FLASH_ON, ratios, sharing, predicted)


def _memory(measured: Measured) -> Iterator[Row]:
    pair, request = measured.pair, measured.request
    types = cache_type(request.type_k), cache_type(request.type_v)
    kv = [
        request.n_ctx * pair.facts.kv_bytes_per_token(facts.attention, *types) for facts in (pair.facts, pair.sa_facts)
    ]
    weights = pair.weights.n_bytes, pair.sa_weights.n_bytes
    buffers, memory = measured.buffers, measured.memory
    yield _bytes(measured, "KV cache", {name: sizes["kv"] for name, sizes in buffers.items()}, kv[1] / kv[0])
    yield _bytes(measured, "compute buffers", {name: sizes["compute"] for name, sizes in buffers.items()}, None)
    peak = {name: sizes["rss"] or 0 for name, sizes in memory.items()}
    yield _bytes(measured, "peak memory", peak, (weights[1] + kv[1]) / (weights[0] + kv[0]))
    if all(sizes["anonymous"] is not None for sizes in memory.values()):
        anonymous = {name: sizes["anonymous"] or 0 for name, sizes in memory.items()}
        yield _bytes(measured, "peak anonymous memory", anonymous, kv[1] / kv[0])


def _bytes(measured: Measured, what: str, values: dict[str, int], predicted: float | None) -> Row:
    baseline = min(_stock_names(measured.settings), key=values.__getitem__)
    once = {name: [float(value)] for name, value in values.items()}
    ratios = _shares(once, baseline, _patched_names(measured.settings))
    sharing = _shares(once, KERNELS, _shared_names(measured.settings))
    return Row(what, None, "bytes", dict(values), baseline, ratios, sharing, predicted)


def as_dict(measured: Measured) -> dict[str, Any]:
    """Return the object that `shareatt-export bench --json` prints."""
    request, sa = measured.request, measured.pair.sa_facts
    return {
        "dense": str(request.dense),
        "sa": str(request.sa),
        "spans": map_text(sa.attention),
        "settings": [setting.name for setting in measured.settings],
        "depths": list(request.depths),
        "prompt": request.prompt,
        "generate": request.generate,
        "rounds": request.rounds,
        "threads": request.threads,
        "n_ctx": request.n_ctx,
        "cache": {"k": request.type_k, "v": request.type_v},
        "rows": [asdict(row) for row in rows(measured)],
        "limits": asdict(measured.limits),
        "uses": [asdict(use) for use in uses(measured)],
    }
