"""What was measured as rows of a table: each value by setting, the ratio to the better dense setting, the prediction.

Pure. A ratio is the median over the rounds of SA against the dense setting in the same round; `low` and `high` are the
worst and the best round. Which dense setting is the better one is decided by the medians, for each row anew.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from ..model.costs import decode_bytes, follower_decode_share, follower_prefill_share, prefill_flops
from ..model.spans import followers, spans_of
from .measure import Measured, Setting, cache_type

FLASH_ON = "dense, flash on"


@dataclass(frozen=True)
class Ratio:
    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """`unit` is tokens/s, where a ratio above 1 is a gain, or bytes or seconds, where one below 1 is.

    "prefill attention" and "decode attention" are the attention of one layer: in SA of a follower. "KV cache" and
    "compute buffers" are what llama.cpp's log says; "peak memory" is the resident set of the process that measured,
    weights that it mapped included; "peak anonymous memory" is without them.
    """

    what: str
    depth: int | None
    unit: str
    values: dict[str, float]  # by setting
    baseline: str  # the dense setting that the ratios refer to
    ratios: dict[str, Ratio]  # by SA setting
    predicted: float | None


def rows(measured: Measured) -> list[Row]:
    return [*_speeds(measured), *_attention(measured), *_memory(measured)]


def _shared(settings: tuple[Setting, ...]) -> list[str]:
    return [setting.name for setting in settings if setting.shared]


def _dense(settings: tuple[Setting, ...]) -> list[str]:
    return [setting.name for setting in settings if not setting.shared]


def _speeds(measured: Measured) -> Iterator[Row]:
    for (what, depth), seconds in sorted(measured.seconds.items()):
        medians = {name: median(rounds) for name, rounds in seconds.items()}
        baseline = min(_dense(measured.settings), key=medians.__getitem__)
        ratios = {}
        for name in _shared(measured.settings):
            each = [dense / ours for dense, ours in zip(seconds[baseline], seconds[name], strict=True)]
            ratios[name] = Ratio(median(each), min(each), max(each))
        speeds = {name: 1 / value for name, value in medians.items()}
        predicted = _predicted_speedup(measured, what, depth)
        yield Row(what, depth, "tokens/s", speeds, baseline, ratios, predicted)


def _predicted_speedup(measured: Measured, what: str, depth: int) -> float:
    request, pair = measured.request, measured.pair
    sides = (pair.facts.source_layers, pair.weights), (pair.sa_facts.source_layers, pair.sa_weights)
    if what == "prefill":
        flops = [prefill_flops(pair.facts, layers, weights, request.prompt, depth) for layers, weights in sides]
        return flops[0] / flops[1]
    types = cache_type(request.type_k), cache_type(request.type_v)
    read = [decode_bytes(pair.facts, layers, weights.n_bytes, depth, *types) for layers, weights in sides]
    return read[0] / read[1]


def _attention(measured: Measured) -> Iterator[Row]:
    """The attention of one follower against that of one layer with flash attention."""
    pair, request = measured.pair, measured.request
    ours = followers(pair.sa_facts.source_layers)
    for (what, depth), seconds in sorted(measured.attention.items()):
        of_layer = {}  # of each round, the median layer
        for setting in measured.settings:
            layers = ours if setting.shared else range(pair.facts.n_layer)
            of_layer[setting.name] = [median(one[layer] for layer in layers) for one in seconds[setting.name]]
        values = {name: median(rounds) for name, rounds in of_layer.items()}
        ratios = {}
        for name in _shared(measured.settings):
            each = [follower / flash for follower, flash in zip(of_layer[name], of_layer[FLASH_ON], strict=True)]
            ratios[name] = Ratio(median(each), min(each), max(each))
        if what == "prefill":
            predicted = follower_prefill_share(pair.facts)
        else:
            predicted = follower_decode_share(
                pair.facts, ours[0], cache_type(request.type_k), cache_type(request.type_v)
            )
        yield Row(f"{what} attention", depth, "seconds", values, FLASH_ON, ratios, predicted)


def _memory(measured: Measured) -> Iterator[Row]:
    pair, request = measured.pair, measured.request
    types = cache_type(request.type_k), cache_type(request.type_v)
    kv = [
        request.n_ctx * pair.facts.kv_bytes_per_token(facts.source_layers, *types)
        for facts in (pair.facts, pair.sa_facts)
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
    baseline = min(_dense(measured.settings), key=values.__getitem__)
    ratios = {}
    for name in _shared(measured.settings):
        ratio = values[name] / values[baseline]
        ratios[name] = Ratio(ratio, ratio, ratio)
    return Row(what, None, "bytes", dict(values), baseline, ratios, predicted)


def as_dict(measured: Measured) -> dict[str, Any]:
    """For --json."""
    request, sa = measured.request, measured.pair.sa_facts
    return {
        "dense": str(request.dense),
        "sa": str(request.sa),
        "spans": ",".join(map(str, spans_of(sa.source_layers))),
        "settings": [setting.name for setting in measured.settings],
        "depths": list(request.depths),
        "prompt": request.prompt,
        "generate": request.generate,
        "rounds": request.rounds,
        "threads": request.threads,
        "n_ctx": request.n_ctx,
        "cache": {"k": request.type_k, "v": request.type_v},
        "rows": [asdict(row) for row in rows(measured)],
    }
