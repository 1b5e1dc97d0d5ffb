"""Source maps and made-up costs of them, for tests of the search."""

import itertools
from collections.abc import Callable, Iterator

from shareatt_export.model.spans import SourceMap, followers
from shareatt_export.searching.measured_costs import MeasuredCosts
from shareatt_export.searching.state import State


def maps_of(n_layer: int, n: int, reach: int = 8) -> Iterator[SourceMap]:
    """Yield all source maps with n followers."""
    choices = (range(max(0, layer - reach), layer + 1) for layer in range(n_layer))
    for found in itertools.product(*choices):
        if len(followers(found)) == n and all(found[source] == source for source in found):
            yield found


def exact(cost: Callable[[SourceMap], float]) -> MeasuredCosts[SourceMap]:
    """Return costs that one window shows exactly."""

    def measure(source_layers: SourceMap, first: int, stop: int) -> list[float]:
        return [cost(source_layers)] * (stop - first)

    return MeasuredCosts(State(None, {}), measure, 1, tuple)
