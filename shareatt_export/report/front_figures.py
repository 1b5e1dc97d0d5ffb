"""The figure of a front: KL against bytes, the table of its points, and what the slider shows for each budget."""

from dataclasses import dataclass
from typing import Any

from .charts import Chart, Series, Value, chart, stairs
from .map_figures import MapFigures
from .points import KINDS, Front, Point, best_maps
from .tables import Table, Text, bars, table
from .values import Interval
from .words import number, whole, with_interval

FRONT_STYLE = 0


@dataclass(frozen=True)
class FrontFigure:
    """`budgets`: the slider's stops, in bytes of KV cache per token. `start`: the number of the stop where it begins.

    `data`: what the script shows.
    """

    id: str
    measured_on: str
    files: tuple[str, ...]
    chart: Chart
    table: Table
    budgets: tuple[int, ...]
    start: int
    data: dict[str, Any]


def front_figure(id: str, front: Front, figures: MapFigures) -> FrontFigure:
    """Return the figure of a front; the maps of its points get their figures."""
    points = sorted(front.points, key=lambda point: (point.kv_bytes, point.kl.value))
    numbers = {point: str(i) for i, point in enumerate(points, 1)}
    maps = [point for point in points if point.is_map]
    budgets = tuple(sorted({point.kv_bytes for point in maps}))
    return FrontFigure(
        id,
        front.measured_on,
        front.files,
        _chart(id, front, numbers),
        _table(front, points, numbers),
        budgets,
        _start(points, budgets),
        {
            "budgets": budgets,
            "dense": front.dense_bytes,
            "points": [_point_data(point, numbers[point], front, figures) for point in points],
        },
    )


def _start(points: list[Point], budgets: tuple[int, ...]) -> int:
    chosen = [point.kv_bytes for point in points if point.is_map and point.kind in ("layers", "groups")]
    return budgets.index(min(chosen)) if chosen else max(len(budgets) - 1, 0)


def _words(point: Point) -> str:
    return f"{point.name}: {whole(point.kv_bytes)} bytes per token, KL {with_interval(point.kl, 2)}"


def _chart(id: str, front: Front, numbers: dict[Point, str]) -> Chart:
    series = []
    for style, (kind, name) in enumerate(KINDS.items()):
        values = tuple(
            Value(point.kv_bytes, point.kl, _words(point), label, f"{id}-{label}")
            for point, label in numbers.items()
            if point.kind == kind
        )
        if values:
            series.append(Series(name, style, values))
    corners = stairs([(point.kv_bytes, point.kl.value) for point in best_maps(front.points)])
    if len(corners) > 1:
        line = tuple(Value(x, Interval(y), "") for x, y in corners)
        series.insert(0, Series("best maps", FRONT_STYLE, line, joined=True, marked=False))
    rules = [(point.kl.value, point.name.removeprefix("dense, ")) for point in front.weights]
    return chart(
        "KL divergence to the dense model, nats per token",
        "bytes of KV cache per token",
        "KL",
        series,
        rules,
        log=True,
    )


def _table(front: Front, points: list[Point], numbers: dict[Point, str]) -> Table:
    everything = [*points, *front.weights]
    rows = []
    for point, bar in zip(everything, bars([point.kl for point in everything]), strict=True):
        saved = 100 * (1 - point.kv_bytes / front.dense_bytes) if front.dense_bytes else 0
        rows.append(
            (
                f"{numbers[point]}. {point.name}" if point in numbers else point.name,
                Text(with_interval(point.kl, 2), bar),
                whole(point.kv_bytes),
                f"{saved:.1f} %",
                "" if point.perplexity is None else f"{point.perplexity:.2f}",
                with_interval(point.change, 4),
                with_interval(point.same_top, 3, 100, " %"),
            )
        )
    columns = ("map", "KL", "bytes per token", "saved", "perplexity", "perplexity / dense", "same top token")
    return table("All that was measured", columns, rows)


def _note(point: Point) -> str:
    """Return what is to be said of the command."""
    if point.kind == "file":
        return f"It is exported already: {point.name}."
    if point.command is None:
        return "The JSON file has no command that exports it."
    if " --map " in point.command:
        return "The command reads the map from a file. If you do not have it:"
    return ""


def _point_data(point: Point, label: str, front: Front, figures: MapFigures) -> dict[str, Any]:
    saved = 1 - point.kv_bytes / front.dense_bytes if front.dense_bytes else 0.0
    perplexity = "" if point.perplexity is None else f", perplexity {number(point.perplexity, 4)}"
    return {
        "mark": label,
        "name": point.name,
        "bytes": point.kv_bytes,
        "kl": point.kl.value,
        "is_map": point.is_map,
        "words": f"{whole(point.kv_bytes)} bytes per token, {100 * saved:.1f} % saved; "
        f"KL {with_interval(point.kl, 2)}{perplexity}",
        "command": point.command,
        "note": _note(point),
        "map": None if point.map is None or point.kind == "cache" else figures.id_of(point.map, point.name),
    }
