"""Progress events: what a long piece of work says of itself, whoever shows it.

step("compiling", 0.25)    # what is being done, and the fraction of it that is done if it is known

stages = Stages(step, {"writing": 1, "verifying": 1})
stages("writing")(0.5)     # a quarter of all
"""

from collections.abc import Callable, Mapping
from threading import Lock

from .streams import Advance

Step = Callable[[str, float | None], None]
Fraction = Callable[[float], None]  # of one stage


def silent(what: str, fraction: float | None) -> None:
    """A Step for callers who do not watch."""


class Stages:
    """One fraction for work in several stages; `shares` are their times, as far as one can guess."""

    def __init__(self, step: Step, shares: Mapping[str, float]) -> None:
        self._step, self._shares, self._total = step, shares, sum(shares.values())

    def __call__(self, what: str) -> Fraction:
        names = list(self._shares)
        before = sum(self._shares[name] for name in names[: names.index(what)])

        def watch(fraction: float) -> None:
            self._step(what, (before + fraction * self._shares[what]) / self._total)

        watch(0)
        return watch


def counted(watch: Fraction, total: int) -> Advance:
    """Tells `watch` of bytes, of which there are `total`."""
    done, lock = 0, Lock()

    def advance(n_bytes: int) -> None:  # on several threads
        nonlocal done
        with lock:
            done += n_bytes
            watch(min(1.0, done / total) if total else 1.0)

    return advance
