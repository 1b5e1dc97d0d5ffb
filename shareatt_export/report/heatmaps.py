"""Heatmaps: matrices as a few paths, one for each colour, so that a page with many of them stays small."""

from collections.abc import Sequence
from dataclasses import dataclass

N_COLOURS = 8
NUMBERS = 16  # rows up to which each cell has its number


@dataclass(frozen=True)
class Level:
    """The cells of one colour as a path in units of cells, and the values that they have."""

    colour: int
    path: str
    words: str


@dataclass(frozen=True)
class Heatmap:
    """`id`: by which the script finds its values. `ticks`: the rows and columns that are numbered.

    `numbers`: column, row, text and colour of each cell, where the matrix is small. `is_whole`: no cell is empty.
    """

    id: str
    title: str
    row_name: str
    column_name: str
    n_rows: int
    n_columns: int
    levels: tuple[Level, ...]
    ticks: tuple[int, ...]
    numbers: tuple[tuple[int, int, str, int], ...]
    is_whole: bool


def heatmap(
    id: str, title: str, row_name: str, column_name: str, values: Sequence[Sequence[float | None]], high: float | None
) -> Heatmap:
    """Draw a matrix on a scale from 0 to `high`, or to the largest value. A cell of None stays empty."""
    known = [value for row in values for value in row if value is not None]
    top = (max(known, default=0.0) if high is None else high) or 1.0

    def colour(value: float) -> int:
        return min(max(int(N_COLOURS * value / top), 0), N_COLOURS - 1)

    cells: list[list[str]] = [[] for _ in range(N_COLOURS)]
    numbers = []
    n_columns = max(map(len, values), default=0)
    small = max(len(values), n_columns) <= NUMBERS
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            if value is None:
                continue
            cells[colour(value)].append(f"M{x} {y}h1v1h-1z")
            if small:
                numbers.append((x, y, _short(value), colour(value)))
    step = 1 if small else 5
    levels = tuple(
        Level(i, "".join(found), f"{_short(top * i / N_COLOURS)} to {_short(top * (i + 1) / N_COLOURS)}")
        for i, found in enumerate(cells)
    )
    ticks = tuple(range(0, max(len(values), n_columns), step))
    is_whole = all(value is not None for row in values for value in row)
    return Heatmap(id, title, row_name, column_name, len(values), n_columns, levels, ticks, tuple(numbers), is_whole)


def _short(value: float) -> str:
    return f"{value:.2f}".removeprefix("0") if value else "0"
