"""Steps on stderr, for work that takes minutes: a bar with the time left on a terminal, lines elsewhere.

with steps(err) as step:
    step("compiling", 0.25)    # what is being done, and the fraction of it that is done if it is known
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

Step = Callable[[str, float | None], None]


def silent(what: str, fraction: float | None) -> None:
    """A Step for callers who do not watch."""


@contextmanager
def steps(console: Console, quiet: bool = False) -> Iterator[Step]:
    if quiet:
        yield silent
    elif console.is_terminal:
        columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(elapsed_when_finished=True)
        with Progress(*columns, console=console, transient=True, speed_estimate_period=600) as progress:
            task = progress.add_task("", total=None)

            def show(what: str, fraction: float | None) -> None:
                total = 1 if fraction is not None else None
                progress.update(task, description=what, completed=fraction or 0, total=total)

            yield show
    else:
        yield _lines(console)


def _lines(console: Console) -> Step:
    """A line for each step and each tenth of it."""
    said: set[str] = set()
    start: float | None = None

    def say(what: str, fraction: float | None) -> None:
        nonlocal start
        line, left = what, ""
        if fraction is not None:
            line = f"{what}: {int(10 * fraction) * 10} %"
            if start is None:
                start = time.monotonic()
            elif fraction > 0:
                left = f", about {(time.monotonic() - start) * (1 - fraction) / fraction / 60:.0f} minutes left"
        if line not in said:
            said.add(line)
            console.print(line + left, highlight=False)

    return say
