"""The costs of maps that a search has measured, window by window.

Most maps of a search are far from the best, and a few windows show that. So maps are compared by successive halving
(arXiv:1502.07943): all of them on the first windows, the better third on more, and only the best on all.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from .state import Costs, State

KEPT = 3  # one of this many maps goes on to twice the windows
FIRST_SHARE = 4  # of the windows, one of this many is in the first comparison

M = TypeVar("M", bound=Hashable)  # a source map of layers, or an attention map
Measure = Callable[[M, int, int], Sequence[float]]  # costs on the windows from the first to before the last
Rank = Callable[[M, Sequence[float]], float]  # of a map with its costs on the first windows; the lowest is the best


@dataclass(frozen=True)
class CostedMap(Generic[M]):
    """A map and its measured cost."""

    map: M
    cost: float


def _mean(each: Hashable, costs: Sequence[float]) -> float:
    return float(np.mean(costs))


class MeasuredCosts(Generic[M]):
    """Measures a map on no window twice. Costs are means over windows.

    `measure` measures; `state` keeps what it found, under the numbers that `key` makes of a map, so that an interrupted
    search goes on.
    """

    def __init__(self, state: State, measure: Measure[M], n_windows: int, key: Callable[[M], tuple[int, ...]]) -> None:
        self._state, self._measure, self.n_windows, self._key = state, measure, n_windows, key
        self._known: Costs = state.costs()
        self._measured: set[M] = set()

    @property
    def n_measured(self) -> int:
        """How many maps were measured now, at least in part."""
        return len(self._measured)

    @property
    def first_windows(self) -> int:
        """How many windows every map is measured on."""
        return min(self.n_windows, max(2, self.n_windows // FIRST_SHARE))

    def costed(self, each: M) -> CostedMap[M]:
        """Return the map with its cost on all windows."""
        return CostedMap(each, _mean(each, self._costs(each, self.n_windows)))

    def rough(self, each: M) -> float:
        """Return the cost on the first windows."""
        return _mean(each, self._costs(each, self.first_windows))

    def known(self, each: M) -> Sequence[float]:
        """Return the costs on the windows that the map was measured on."""
        return self._known.get(self._key(each), ())

    def best(self, maps: Iterable[M], n: int, rank: Rank[M] = _mean) -> list[CostedMap[M]]:
        """Return the n maps that rank lowest, the lowest first; they are measured on all windows."""
        left, n_windows = sorted(set(maps), key=self._key), self.first_windows
        while True:
            ranks = {each: rank(each, self._costs(each, n_windows)) for each in left}
            found = sorted(left, key=ranks.__getitem__)
            if n_windows == self.n_windows:
                return [self.costed(each) for each in found[:n]]
            left = found[: max(n, len(found) // KEPT)]
            n_windows = min(self.n_windows, 2 * n_windows)

    def _costs(self, each: M, n_windows: int) -> Sequence[float]:
        known = self._known.setdefault(self._key(each), [])
        if len(known) < n_windows:
            known += self._measure(each, len(known), n_windows)
            self._measured.add(each)
            self._state.save_costs(self._known)
        return known[:n_windows]
