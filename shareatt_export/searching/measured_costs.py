"""The costs of source maps that a search has measured, window by window.

Most maps of a search are far from the best, and a few windows show that. So maps are compared by successive halving
(arXiv:1502.07943): all of them on the first windows, the better third on more, and only the best on all.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..model.spans import SourceMap, followers
from .state import Costs, State

KEPT = 3  # one of this many maps goes on to twice the windows
FIRST_SHARE = 4  # of the windows, one of this many is in the first comparison

Measure = Callable[[SourceMap, int, int], Sequence[float]]  # costs on the windows from the first to before the last


@dataclass(frozen=True)
class CostedMap:
    """A source map and its measured cost."""

    source_layers: SourceMap
    cost: float

    @property
    def n_followers(self) -> int:
        return len(followers(self.source_layers))


class MeasuredCosts:
    """Measures a source map on no window twice. Costs are means over windows.

    `measure` measures; `state` keeps what it found, so that an interrupted search goes on.
    """

    def __init__(self, state: State, measure: Measure, n_windows: int) -> None:
        self._state, self._measure, self.n_windows = state, measure, n_windows
        self._known: Costs = state.costs()
        self._measured: set[SourceMap] = set()

    @property
    def n_measured(self) -> int:
        """How many maps were measured now, at least in part."""
        return len(self._measured)

    @property
    def first_windows(self) -> int:
        """How many windows every map is measured on."""
        return min(self.n_windows, max(2, self.n_windows // FIRST_SHARE))

    def costed(self, source_layers: SourceMap) -> CostedMap:
        """Return the map with its cost on all windows."""
        return self._costed(source_layers, self.n_windows)

    def rough(self, source_layers: SourceMap) -> float:
        """Return the cost on the first windows."""
        return self._costed(source_layers, self.first_windows).cost

    def best(self, maps: Iterable[SourceMap], n: int) -> list[CostedMap]:
        """Return the n cheapest maps, the cheapest first; they are measured on all windows."""
        left, n_windows = sorted(set(maps)), self.first_windows
        while True:
            found = sorted((self._costed(each, n_windows) for each in left), key=lambda each: each.cost)
            if n_windows == self.n_windows:
                return found[:n]
            left = [each.source_layers for each in found[: max(n, len(found) // KEPT)]]
            n_windows = min(self.n_windows, 2 * n_windows)

    def _costed(self, source_layers: SourceMap, n_windows: int) -> CostedMap:
        known = self._known.setdefault(source_layers, [])
        if len(known) < n_windows:
            known += self._measure(source_layers, len(known), n_windows)
            self._measured.add(source_layers)
            self._state.save_costs(self._known)
        return CostedMap(source_layers, float(np.mean(known[:n_windows])))
