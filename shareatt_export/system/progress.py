"""Progress events: long operations report what they do, and the caller decides how to show it.

step("compiling", 0.25)    # the current operation, and the fraction of it that is done (None if unknown)

stages = Stages(step, {"writing": 1, "verifying": 1})
stages("writing")(0.5)     # a quarter of the whole
"""

from collections.abc import Callable, Mapping
from threading import Lock

from .streams import Advance

Step = Callable[[str, float | None], None]
Fraction = Callable[[float], None]  # told the fraction of one stage that is done, 0 to 1


def silent(what: str, fraction: float | None) -> None:
    """Ignore the progress: a Step for callers that do not show it."""


class Stages:
    """Joins the progress of several stages into one fraction; `shares` are their estimated relative times."""

    def __init__(self, step: Step, shares: Mapping[str, float]) -> None:
        self._step, self._shares, self._total = step, shares, sum(shares.values())

    def __call__(self, what: str) -> Fraction:
        """Start the stage `what`, a key of `shares`, and return the function that takes its progress."""
        names = list(self._shares)
        before = sum(self._shares[name] for name in names[: names.index(what)])

        def watch(fraction: float) -> None:
            self._step(what, (before + fraction * self._shares[what]) / self._total)

        watch(0)
        return watch


def part(watch: Fraction, before: float, share: float) -> Fraction:
    """Return the function that takes the progress of a part of a stage, which begins at the fraction `before` of it."""
    return lambda fraction: watch(before + share * fraction)


def counted(watch: Fraction, total: int) -> Advance:
    """Return an Advance that adds up bytes and tells `watch` the fraction of `total` that is done."""
    done, lock = 0, Lock()

    def advance(n_bytes: int) -> None:  # several threads call it
        nonlocal done
        with lock:
            done += n_bytes
            watch(min(1.0, done / total) if total else 1.0)

    return advance
