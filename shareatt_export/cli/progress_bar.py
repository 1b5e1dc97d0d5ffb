"""Progress on stderr, for work that takes minutes: a bar with the time left on a terminal, lines elsewhere.

with steps(console) as step:
    step("compiling", 0.25)
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..system.progress import Step, silent

PATIENCE = 2.0  # seconds from one line about the same step to the next


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
    """A line for each step, and then for each tenth of all if that takes long enough to be wanted.

    What follows a comma is a figure that changes all the time, and makes no step of its own.
    """
    said: set[str] = set()
    spoke = start = float("-inf")
    last = ""

    def say(what: str, fraction: float | None) -> None:
        nonlocal spoke, start, last
        now = time.monotonic()
        line, left = what, ""
        name = what.partition(",")[0]
        key = name
        if fraction is not None:
            percent = f": {int(10 * fraction) * 10} %"
            line, key = what + percent, name + percent
            if start < 0:
                start = now
            elif fraction > 0:
                minutes = round((now - start) * (1 - fraction) / fraction / 60)
                left = f", about {minutes} minute{'s' * (minutes != 1)} left"
        if key in said or (name == last and now - spoke < PATIENCE):
            return
        said.add(key)
        spoke, last = now, name
        console.print(line + left, highlight=False)

    return say
