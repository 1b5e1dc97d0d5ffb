"""Tables and figures in words, as all reports show them."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

NEEDS = "llama.cpp with Shared Attention (shareatt-export runtime build)"


def size(n_bytes: int) -> str:
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.2f} {unit}"
    return f"{n_bytes} B"


def change(before: int, after: int) -> str:
    return f"{100 * (after - before) / before:+.1f} %" if before else ""


def table(rows: Iterable[Sequence[str]], columns: Sequence[str] = ()) -> Table:
    grid = Table(*columns, box=box.SIMPLE_HEAD, show_header=bool(columns))
    for row in rows:
        grid.add_row(*map(plain, row))
    return grid


def compact(made: Table, n_names: int) -> Table:
    """Leave the names, which are in the first columns, as much room as there is, and cut none of them."""
    made.padding, made.pad_edge = (0, 1, 0, 0), False
    for column in made.columns[:n_names]:
        column.overflow = "fold"
    for column in made.columns[n_names:]:
        column.no_wrap = True
    return made


def plain(text: str) -> str:
    """Return text of a stranger's file without characters that a terminal or rich would act on."""
    return escape("".join(char if char.isprintable() else "?" for char in text))
