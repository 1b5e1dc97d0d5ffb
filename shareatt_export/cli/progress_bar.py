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

            last = 0.0

            def show(what: str, fraction: float | None) -> None:
                nonlocal last
                if fraction is not None and fraction < last:  # other work, whose time is counted anew
                    progress.reset(task, total=1)
                last = fraction or 0.0
                total = 1 if fraction is not None else None
                progress.update(task, description=what, completed=last, total=total)

            yield show
    else:
        yield _lines(console)


def _lines(console: Console) -> Step:
    """A line for each step, and another one for each tenth of the work, if the step takes long enough.

    The text of a step up to a comma is its name; a figure behind the comma changes all the time.
    """
    said: set[str] = set()
    last_time = start = float("-inf")
    last_name, last_fraction = "", 0.0

    def say(what: str, fraction: float | None) -> None:
        nonlocal last_time, start, last_name, last_fraction
        now = time.monotonic()
        name = what.partition(",")[0]
        line, key, left = what, name, ""
        if fraction is not None:
            percent = f": {int(10 * fraction) * 10} %"
            line, key = what + percent, name + percent
            if start < 0 or fraction < last_fraction:  # other work, whose time is counted anew
                start = now
            elif 0 < fraction < 1:
                left = f", about {_duration((now - start) * (1 - fraction) / fraction)} left"
            last_fraction = fraction
        if key in said or (name == last_name and now - last_time < PATIENCE):
            return
        said.add(key)
        last_time, last_name = now, name
        console.print(line + left, highlight=False)

    return say


def _duration(seconds: float) -> str:
    number, unit = (round(seconds / 60), "minute") if seconds >= 90 else (max(1, round(seconds)), "second")
    return f"{number} {unit}{'s' * (number != 1)}"
