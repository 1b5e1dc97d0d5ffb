"""What an analysis says: how alike layers attend, and the errors of sharing, as heatmaps, for layers and heads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .heatmaps import Heatmap, heatmap
from .measurements import Measurement
from .points import measured_on
from .tables import Table, table
from .values import Record
from .words import number

SIMILARITIES: Mapping[str, str] = {
    "similarity": "Similarity, all positions",
    "similarity_without_first": "Similarity, without the first token",
    "similarity_without_sinks": "Similarity, without the first token and sinks",
}
Values = list[list[float | None]]


@dataclass(frozen=True)
class Analysis:
    """`data`: what the script shows of each heatmap by its id, and the heads of each pair."""

    measured_on: str
    heatmaps: tuple[Heatmap, ...]
    best: Table
    has_heads: bool
    data: dict[str, Any]


def analysis(each: Measurement, id: str) -> Analysis:
    """Return what a file of analyze says. Raises BadInput where its values have wrong types."""
    record, pairs = each.record, each.record.records("pairs")
    drawn: list[Heatmap] = []
    data: dict[str, Any] = {}
    n_layer = 0
    for key, title in SIMILARITIES.items():
        if rows := record.rows(key):
            n_layer = len(rows)
            drawn.append(heatmap(f"{id}-{key}", title, "layer", "layer", rows, 1.0))
            data[drawn[-1].id] = [[None if value is None else round(value, 3) for value in row] for row in rows]
    if any(max(pair.integer("source") or 0, pair.integer("follower") or 0) >= n_layer for pair in pairs):
        raise record.wrong("pairs", f"name layers that the {n_layer} rows of similarity do not have")
    for key, title in (("error", "Error of sharing"), ("ratio", "Error of sharing / error without attention")):
        values = _errors(pairs, n_layer, key)
        drawn.append(heatmap(f"{id}-{key}", title, "follower", "source", values, None))
        data[drawn[-1].id] = values
    heads = {f"{pair.integer('source')}-{pair.integer('follower')}": pair.rows("head_similarity") for pair in pairs}
    data[f"{id}-heads"] = {pair: rows for pair, rows in heads.items() if rows}
    return Analysis(
        measured_on(each).removeprefix("the last quarter of "),
        tuple(drawn),
        _best(pairs),
        bool(data[f"{id}-heads"]),
        data,
    )


def _errors(pairs: Sequence[Record], n_layer: int, key: str) -> Values:
    values: Values = [[None] * n_layer for _ in range(n_layer)]
    for pair in pairs:
        source, follower = pair.integer("source"), pair.integer("follower")
        error, without = pair.number("error"), pair.number("drop_error")
        if source is None or follower is None or error is None:
            continue
        if key == "error":
            values[follower][source] = round(error, 4)
        elif without:
            values[follower][source] = round(error / without, 4)
    return values


def _best(pairs: Sequence[Record]) -> Table:
    """Return the best source of each layer, the least error first."""
    best: dict[int, Record] = {}
    for pair in pairs:
        follower, error = pair.integer("follower"), pair.number("error")
        if follower is not None and error is not None and error < (_error(best.get(follower)) or float("inf")):
            best[follower] = pair
    rows = []
    for follower, pair in sorted(best.items(), key=lambda item: _error(item[1]) or 0.0):
        error, without, alike = pair.number("error"), pair.number("drop_error"), pair.number("similarity")
        rows.append(
            (
                str(follower),
                str(pair.integer("source")),
                "" if alike is None else f"{alike:.2f}",
                "" if error is None else number(error),
                "" if without is None else number(without),
                "" if error is None or not without else f"{error / without:.2f}",
            )
        )
    columns = ("layer", "best source", "similarity", "error of sharing", "error without attention", "ratio")
    return table("The best source of each layer", columns, rows)


def _error(pair: Record | None) -> float | None:
    return pair.number("error") if pair else None
