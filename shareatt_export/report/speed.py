"""What a benchmark says: speed by depth, measured and predicted, attention alone, and memory."""

from collections.abc import Sequence
from dataclasses import dataclass

from .charts import Chart, Series, Value, chart
from .measurements import Measurement
from .tables import Table, Text, bars, table
from .values import Interval, Record
from .words import mebibytes, number, whole, with_interval


@dataclass(frozen=True)
class Speed:
    measured_on: str
    charts: tuple[Chart, ...]
    speeds: Table
    memory: Table


def speed(each: Measurement) -> Speed:
    """Return what a file of bench says. Raises BadInput where its values have wrong types."""
    record = each.record
    rows = record.records("rows")
    words = [f"{key} {value}" for key in ("prompt", "generate", "rounds", "threads") if (value := record.integer(key))]
    at_depth = [row for row in rows if row.integer("depth") is not None]
    memory = [row for row in rows if row.integer("depth") is None]
    titles = {"prefill": "Prefill", "decode": "Decoding"}
    charts = [_chart(title, [row for row in at_depth if row.text("what") == what]) for what, title in titles.items()]
    return Speed(
        f"{record.text('sa')} ({record.text('spans')}) against {record.text('dense')}; {', '.join(words)}",
        tuple(drawn for drawn in charts if drawn),
        _table("Speed and attention", at_depth),
        _table("Memory", memory),
    )


# what the ratios of a row refer to, by their key; older files have the first alone
COMPARED = {"ratios": "better dense", "sharing": "dense, SA kernels"}


def _ratios(row: Record) -> dict[str, Interval]:
    found = {}
    for key, to in COMPARED.items():
        for name in row.only_record(key).data:
            ratio = row.only_record(key).only_record(name)
            if (middle := ratio.number("median")) is not None:
                found[f"{name} / {to}"] = Interval(middle, ratio.number("low"), ratio.number("high"))
    return found


def _chart(title: str, rows: Sequence[Record]) -> Chart | None:
    by_setting: dict[str, list[Value]] = {}
    predicted = []
    for row in rows:
        depth = float(row.integer("depth") or 0)
        for name, ratio in _ratios(row).items():
            words = f"{name} at {whole(depth)} tokens: {with_interval(ratio, 3)} times the speed"
            by_setting.setdefault(name, []).append(Value(depth, ratio, words))
        if (value := row.number("predicted")) is not None:
            predicted.append(Value(depth, Interval(value), f"predicted at {whole(depth)} tokens: {number(value, 3)}"))
    if not by_setting:
        return None
    series = [Series(name, i, tuple(values), joined=True) for i, (name, values) in enumerate(by_setting.items())]
    if predicted:
        series.append(Series("predicted", 7, tuple(predicted), joined=True))
    return chart(title, "tokens in the context", "times as fast", series, [(1.0, "dense")])


def _table(title: str, rows: Sequence[Record]) -> Table:
    settings = list(dict.fromkeys(name for row in rows for name in row.only_record("ratios").data))
    compared = list(dict.fromkeys(name for row in rows for name in _ratios(row)))
    ratios = [_ratios(row) for row in rows]
    cells: list[list[str | Text]] = []
    scales = {name: bars([each.get(name) for each in ratios], low=None) for name in compared}
    for i, row in enumerate(rows):
        depth, unit = row.integer("depth"), row.text("unit") or ""
        values, baseline = row.numbers_by_name("values"), row.text("baseline") or ""
        shown = [_value(values[name], unit) if name in values else "" for name in (baseline, *settings)]
        predicted = row.number("predicted")
        cells.append(
            [
                row.text("what") or "",
                "" if depth is None else whole(depth),
                f"{shown[0]} ({baseline})" if shown[0] else "",
                *shown[1:],
                *(Text(with_interval(ratios[i].get(name), 3), scales[name][i]) for name in compared),
                "" if predicted is None else number(predicted, 3),
            ]
        )
    return table(title, ("what", "depth", "better dense setting", *settings, *compared, "predicted"), cells)


def _value(value: float, unit: str) -> str:
    if unit == "bytes":
        return mebibytes(value)
    if unit == "seconds":
        return f"{number(1000 * value, 3)} ms"
    return f"{number(value, 3)} {unit}".strip()
