"""What an evaluation says: losses of each model, by text, by position and on tasks, with intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .charts import Chart, Series, Value, chart
from .measurements import Measurement
from .points import measured_on
from .tables import Table, Text, bars, table
from .values import Interval, Record
from .words import number, whole, with_interval

QUALITY_COLUMNS = ("KL", "perplexity", "perplexity / dense", "same top token")


@dataclass(frozen=True)
class Quality:
    """`notes`: sentences about the whole."""

    measured_on: str
    notes: tuple[str, ...]
    scores: Table
    texts: tuple[Table, ...]
    positions: Chart | None
    position_table: Table | None
    tasks: tuple[Table, ...]


def quality(each: Measurement) -> Quality:
    """Return what a file of eval says. Raises BadInput where its values have wrong types."""
    record = each.record
    scores = record.records("scores")
    tokens = record.integer("tokens")
    notes = [f"{whole(tokens)} tokens are scored."] if tokens is not None else []
    if fitted := record.texts("fitted_to_this_text"):
        notes.append(f"Fitted to this very text, so expect a larger loss on others: {', '.join(fitted)}.")
    if why := record.text("why_no_weights"):
        notes.append(f"The dense model was not quantised: {why}.")
    buckets = record.records("positions")
    return Quality(
        measured_on(each),
        tuple(notes),
        _score_table(scores),
        tuple(_text_table(text) for text in record.records("texts")),
        _position_chart(buckets) if len(buckets) > 1 else None,
        _position_table(buckets) if buckets else None,
        tuple(_task_table(task) for task in record.records("tasks")),
    )


def quality_cells(record: Record, dense: float | None) -> tuple[str, ...]:
    """Return the cells of QUALITY_COLUMNS. `dense`: the perplexity of the dense model, for older files."""
    perplexity, ratio = record.number("perplexity"), record.ratio("perplexity_ratio")
    if ratio is None and perplexity is not None and dense:
        ratio = Interval(perplexity / dense)
    return (
        with_interval(record.mean("kl"), 2),
        "" if perplexity is None else f"{perplexity:.2f}",
        with_interval(ratio, 4),
        with_interval(record.share("same_top"), 3, 100, " %"),
    )


def _with_bars(rows: Sequence[tuple[str, ...]], values: Sequence[Interval | None]) -> list[list[str | Text]]:
    """Put the bars of these values into the second cells."""
    return [[row[0], Text(row[1], bar), *row[2:]] for row, bar in zip(rows, bars(values), strict=True)]


def _score_table(scores: Sequence[Record]) -> Table:
    dense = scores[0].number("perplexity") if scores else None
    rows = []
    for each in scores:
        size, kv, bits = (each.number(key) for key in ("file_bytes", "kv_bytes_per_token", "bits_per_byte"))
        rows.append(
            (
                each.text("name") or "",
                *quality_cells(each, dense),
                "" if bits is None else f"{bits:.3f}",
                "" if kv is None else whole(kv),
                "" if size is None else whole(size),
            )
        )
    columns = ("model", *QUALITY_COLUMNS, "bits per byte", "KV bytes per token", "file bytes")
    return table("Each model", columns, _with_bars(rows, [each.mean("kl") for each in scores]))


def _text_table(text: Record) -> Table:
    models, windows = text.records("models"), text.integer("windows")
    dense = models[0].number("perplexity") if models else None
    rows = [(each.text("name") or "", *quality_cells(each, dense)) for each in models]
    title = (text.text("name") or "a text without a name") + ("" if windows is None else f", {windows} windows")
    return table(title, ("model", *QUALITY_COLUMNS), _with_bars(rows, [each.mean("kl") for each in models]))


def _ratio(at: Record) -> Interval | None:
    """Return the perplexity divided by the dense model's."""
    log = at.mean("log_perplexity_ratio")
    return None if log is None else Interval(math.exp(log.value), *map(math.exp, log.ends))


def _name(bucket: Record) -> str:
    return f"{bucket.integer('first')}-{bucket.integer('last')}"


def _position_chart(buckets: Sequence[Record]) -> Chart | None:
    by_model: dict[str, list[Value]] = {}
    for i, bucket in enumerate(buckets):
        for at in bucket.records("models")[1:]:
            name, ratio = at.text("name") or "", _ratio(at)
            if ratio is not None:
                words = f"{name}, positions {_name(bucket)}: {with_interval(ratio, 4)}"
                by_model.setdefault(name, []).append(Value(float(i), ratio, words))
    if not by_model:
        return None
    series = [Series(name, i, tuple(values), joined=True) for i, (name, values) in enumerate(by_model.items())]
    return chart(
        "Perplexity by the position of the token",
        "position in the window",
        "perplexity / dense",
        series,
        [(1.0, "dense")],
        x_words=[_name(bucket) for bucket in buckets],
    )


def _position_table(buckets: Sequence[Record]) -> Table:
    names = [at.text("name") or "" for at in buckets[0].records("models")]
    cells: dict[str, list[str]] = {name: [name] for name in names}
    for bucket in buckets:
        models = {at.text("name") or "": at for at in bucket.records("models")}
        for name in names:
            at = models.get(name)
            kl, ratio = (at.mean("kl"), _ratio(at)) if at else (None, None)
            cells[name].append("; ".join(filter(None, (with_interval(ratio, 4), with_interval(kl, 2)))))
    title = "By position: perplexity / dense; KL"
    return table(title, ("model", *map(_name, buckets)), [cells[name] for name in names[1:]])


def _task_table(task: Record) -> Table:
    models = task.records("models")
    accuracies: list[Interval | None] = []
    rows: list[tuple[str, ...]] = []
    for each in models:
        found, ends = each.number("accuracy"), each.ends("ci95")
        accuracy = None if found is None else Interval(found, *(ends or (None, None)))
        accuracies.append(accuracy)
        lost, won, p = each.integers("lost_lines") or (), each.integers("won_lines") or (), each.number("p")
        flips = (
            ("", "", "") if each is models[0] else (str(len(lost)), str(len(won)), "" if p is None else number(p, 2))
        )
        rows.append((each.text("name") or "", with_interval(accuracy, 3, 100, " %"), *flips))
    title = f"{task.text('file') or 'a task'}, {task.text('metric') or ''}: {task.integer('items')} items"
    columns = ("model", "accuracy", "lost", "won", "p of the sign test")
    return table(title, columns, _with_bars(rows, accuracies))
