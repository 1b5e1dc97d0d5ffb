"""What was measured of maps, K caches and weights: KL divergence against the bytes of KV cache that a token takes.

Only what was measured on the same text, in the same windows, stands in one picture: a front.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from .maps import Shape, UnitMap, read_map, read_shape
from .measurements import Measurement
from .values import Interval, Record

F16 = "f16"
# What a point is; the order is that of the legend, and of what is drawn above what.
KINDS: Mapping[str, str] = {
    "layers": "found: whole layers",
    "groups": "found: KV groups",
    "simple": "KV groups, moves of one kind",
    "file": "SA file",
    "usual": "late span, blocks of layers",
    "without": "no attention in these layers",
    "cache": "quantised K cache",
    "dense": "dense model",
}


@dataclass(frozen=True)
class Point:
    """`is_map`: whether the point is a map with a K cache of f16, which a search can choose."""

    kind: str
    name: str
    kv_bytes: int
    kl: Interval
    perplexity: float | None
    change: Interval | None
    same_top: Interval | None
    type_k: str
    command: str | None
    map: UnitMap | None

    @property
    def is_map(self) -> bool:
        return self.type_k == F16 and self.kind != "dense"


@dataclass(frozen=True)
class Front:
    """`measured_on`: text, window and number of windows, in words. `weights`: the dense model with other weights."""

    measured_on: str
    files: tuple[str, ...]
    points: tuple[Point, ...]
    weights: tuple[Point, ...]

    @property
    def dense_bytes(self) -> int:
        return max(point.kv_bytes for point in (*self.points, *self.weights))


def best_maps(points: Iterable[Point]) -> list[Point]:
    """Return the maps that no other one beats in both bytes and KL, the fewest bytes first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda each: (each.kv_bytes, each.kl.value)):
        if point.is_map and (not best or point.kl.value < best[-1].kl.value):
            best.append(point)
    return best


def fronts(measurements: Iterable[Measurement]) -> list[Front]:
    """Return the fronts of one model. Raises BadInput where a file contradicts itself."""
    found: dict[tuple[object, ...], list[Measurement]] = {}
    for each in measurements:
        if each.kind in READERS:
            found.setdefault(_key(each), []).append(each)
    return [front for group in found.values() if (front := _front(group)).points]


def _key(each: Measurement) -> tuple[object, ...]:
    record = each.record
    how = "eval" if each.kind == "eval" else "search"
    return how, record.only_record("text").text("sha256"), record.integer("n_ctx"), record.integer("windows")


def _front(group: list[Measurement]) -> Front:
    points = list(dict.fromkeys(point for each in group for point in READERS[each.kind](each.record)))
    weights = tuple(point for point in points if point.kind == "weights")
    return Front(
        measured_on(group[0]),
        tuple(each.name for each in group),
        tuple(point for point in points if point.kind != "weights"),
        weights,
    )


def measured_on(each: Measurement) -> str:
    """Return in words what a measurement was made on."""
    record = each.record
    part = "" if each.kind == "eval" else "the last quarter of "
    windows, n_ctx = record.integer("windows"), record.integer("n_ctx")
    count = "windows" if windows is None else f"{windows} window{'s' * (windows != 1)}"
    size = "" if n_ctx is None else f" of {n_ctx} tokens"
    return f"{part}{record.only_record('text').text('name') or 'a text without a name'}, in {count}{size}"


def _of_layers(record: Record) -> Iterator[Point]:
    shape = read_shape(record)
    command, chosen = record.text("command"), record.integers("source_layers")
    for i, each in enumerate(record.records("path")):
        known = command if each.integers("source_layers") == chosen else None  # older files name this command only
        yield from _points(each, "dense" if i == 0 else "layers", shape, known)
    for each in record.records("baselines"):
        is_dense = (each.text("name") or "").startswith("dense")
        yield from _points(each, "cache" if is_dense else "usual", shape)
    if dropped := record.record("dropped"):
        yield from _points(dropped, "without", shape)


def _of_groups(record: Record) -> Iterator[Point]:
    shape = read_shape(record)
    for key, kind, command in (("dense", "dense", None), ("found", "groups", record.text("command"))):
        yield from _points(record.only_record(key), kind, shape, command)
    for each in record.records("simple"):
        yield from _points(each, "simple", shape)
    for each in record.records("quantised"):
        yield from _points(each, "cache", shape)


def _of_files(record: Record) -> Iterator[Point]:
    shape = read_shape(record)
    for i, each in enumerate(record.records("scores")):
        if each.text("weights"):
            kind = "weights"
        elif each.integers("without_attention"):
            kind = "without"
        elif each.text("type_k") not in (None, F16):
            kind = "cache"
        else:
            kind = "dense" if i == 0 else "file"
        yield from _points(each, kind, shape)


READERS = {"search": _of_layers, "search --unit group": _of_groups, "eval": _of_files}


def _points(record: Record, kind: str, shape: Shape | None, command: str | None = None) -> Iterator[Point]:
    """Yield the point of an object, if it has bytes and KL.

    Older files have no map of what is without attention, only the dense one.
    """
    kv_bytes, kl = record.integer("kv_bytes_per_token"), record.mean("kl")
    if kv_bytes is None or kl is None:
        return
    yield Point(
        kind=kind,
        name=record.text("name") or "a map without a name",
        kv_bytes=kv_bytes,
        kl=kl,
        perplexity=record.number("perplexity"),
        change=record.ratio("perplexity_ratio"),
        same_top=record.share("same_top"),
        type_k=record.text("type_k") or ("another type" if kind == "cache" else F16),
        command=record.text("command") or command,
        map=read_map(record, shape) if kind != "without" or "source_heads" in record.data else None,
    )
