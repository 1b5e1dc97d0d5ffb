"""Tables of the page: text, and bars that show a number with its interval beside those of the other rows."""

from collections.abc import Sequence
from dataclasses import dataclass

from .values import Interval


@dataclass(frozen=True)
class Bar:
    """Places from 0 to 100."""

    low: float
    value: float
    high: float


@dataclass(frozen=True)
class Text:
    text: str
    bar: Bar | None = None


@dataclass(frozen=True)
class Table:
    """The first column names the rows."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Text, ...], ...]


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> Table:
    """Return a table without the columns in which no row has a text."""
    cells = [[Text(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    kept = [i for i in range(len(columns)) if any(row[i].text for row in cells)]
    return Table(title, tuple(columns[i] for i in kept), tuple(tuple(row[i] for i in kept) for row in cells))


def bars(values: Sequence[Interval | None], low: float | None = 0.0) -> list[Bar | None]:
    """Return bars on one scale, from `low` or the lowest end, to the highest end."""
    ends = [end for value in values if value for end in (value.value, *value.ends)]
    if not ends:
        return [None] * len(values)
    first = min(ends) if low is None else low
    width = (max(ends) - first) or 1.0

    def place(value: float) -> float:
        return round(min(max(100 * (value - first) / width, 0.0), 100.0), 1)

    return [Bar(place(each.ends[0]), place(each.value), place(each.ends[1])) if each else None for each in values]
