"""Which layers should share? A search over source maps by a cost that the caller measures.

The errors of single pairs give a first guess: added up, by dynamic programming. What a whole map costs (in practice the
KL divergence to the dense model) must be measured, as costs do not add up. A beam search adds followers one at a time
to the best few maps. At last, followers are exchanged for others as long as that lowers the cost.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from ..model.candidate_pairs import Pair
from ..model.spans import SourceMap, followers
from .measured_costs import CostedMap, MeasuredCosts


@dataclass(frozen=True)
class Settings:
    """`beam`: number of maps that are followed up. `candidates`: further followers tried for each of them.

    `rounds`: maximum number of rounds of exchanges.
    """

    beam: int = 3
    candidates: int = 6
    rounds: int = 3


DEFAULTS = Settings()

CostedLayers = CostedMap[SourceMap]
Enough = Callable[[CostedLayers], bool]  # whether no further follower is needed


def n_followers(step: CostedLayers) -> int:
    """Return the number of layers that reuse attention weights."""
    return len(followers(step.map))


def with_follower(source_layers: SourceMap, source: int, follower: int) -> SourceMap:
    """Return the map in which `follower` uses the attention weights of `source`."""
    return (*source_layers[:follower], source, *source_layers[follower + 1 :])


def additions(source_layers: SourceMap, errors: Mapping[Pair, float]) -> Iterator[SourceMap]:
    """Yield the map with one follower more, for each layer that can be one and its best source; the cheapest first."""
    sources = {source_layers[follower] for follower in followers(source_layers)}
    best: dict[int, tuple[float, int]] = {}
    for (source, follower), error in errors.items():
        free = source_layers[follower] == follower and follower not in sources and source_layers[source] == source
        if free and (follower not in best or (error, source) < best[follower]):
            best[follower] = error, source
    for _, source, follower in sorted((error, source, follower) for follower, (error, source) in best.items()):
        yield with_follower(source_layers, source, follower)


def guess(n_layer: int, errors: Mapping[Pair, float], n: int) -> SourceMap | None:
    """Return the contiguous spans with n followers whose squared errors have the least sum; None if there are none.

    Dynamic programming over layers: best[i][k] is the least sum for the first i layers with k followers.
    """
    best: list[dict[int, tuple[float, SourceMap]]] = [{0: (0.0, ())}]
    for end in range(1, n_layer + 1):
        found: dict[int, tuple[float, SourceMap]] = {}
        for source in range(end):
            span = range(source + 1, end)
            if any((source, follower) not in errors for follower in span):
                continue
            block = sum(errors[Pair(source, follower)] ** 2 for follower in span)
            for k, (cost, before) in best[source].items():
                total = k + len(span)
                if total <= n and (total not in found or cost + block < found[total][0]):
                    found[total] = cost + block, (*before, *(source for _ in range(source, end)))
        best.append(found)
    return best[n_layer][n][1] if n in best[n_layer] else None


class BeamSearch:
    """Searches the maps of a model. `errors`: of all pairs that could share.

    `singles`: rough cost of each follower alone, with its best source; known after path().
    """

    def __init__(
        self, n_layer: int, errors: Mapping[Pair, float], costs: MeasuredCosts[SourceMap], settings: Settings = DEFAULTS
    ) -> None:
        self.n_layer, self.errors, self.costs, self.settings = n_layer, errors, costs, settings
        self.singles: dict[int, float] = {}

    def path(self, enough: Enough) -> list[CostedLayers]:
        """Return the best map for each number of followers, from none to where it is enough or none can be added."""
        dense = self.costs.costed(tuple(range(self.n_layer)))
        path, beam = [dense], [dense]
        while not enough(path[-1]):
            if not self.singles:
                self.singles = {
                    _new_follower(dense.map, extended): self.costs.rough(extended)
                    for extended in additions(dense.map, self.errors)
                }
            maps = {extended for step in beam for extended in self._extensions(step.map)}
            first = guess(self.n_layer, self.errors, len(path))
            beam = self.costs.best(maps | {first} if first else maps, self.settings.beam)
            if not beam:
                break
            path.append(beam[0])
        return path

    def guesses(self, enough: Enough) -> list[CostedLayers]:
        """Return a guessed map for each number of followers; only one cost is measured for each number.

        Where no contiguous spans have that number of followers, as in models that mix sliding windows with full
        attention, the follower with the least error is added to the map before.
        """
        path = [self.costs.costed(tuple(range(self.n_layer)))]
        while not enough(path[-1]):
            found = guess(self.n_layer, self.errors, len(path))
            found = found or next(additions(path[-1].map, self.errors), None)
            if found is None:
                break
            path.append(self.costs.costed(found))
        return path

    def exchanged(self, step: CostedLayers) -> CostedLayers:
        """Exchange single followers for others, or give them other sources, as long as that lowers the cost."""
        for _ in range(self.settings.rounds):
            before = step
            for follower in followers(before.map):
                if step.map[follower] != follower:
                    exchanges = self._exchanges(step.map, follower)
                    step = min(step, *self.costs.best([step.map, *exchanges], 1), key=lambda each: each.cost)
            if step == before:
                break
        return step

    def _exchanges(self, source_layers: SourceMap, follower: int) -> list[SourceMap]:
        fewer = with_follower(source_layers, follower, follower)
        sources = sorted(
            (error, source)
            for (source, other), error in self.errors.items()
            if other == follower and fewer[source] == source
        )
        moved = [with_follower(fewer, source, follower) for _, source in sources[: self.settings.candidates]]
        return [exchanged for exchanged in self._extensions(fewer) + moved if exchanged != source_layers]

    def _extensions(self, source_layers: SourceMap) -> list[SourceMap]:
        """Return the maps with one follower more that are worth a measurement: those that cost least alone."""
        maps = additions(source_layers, self.errors)
        cheapest = sorted(maps, key=lambda extended: self.singles[_new_follower(source_layers, extended)])
        return cheapest[: self.settings.candidates]


def _new_follower(before: SourceMap, after: SourceMap) -> int:
    return next(layer for layer, source in enumerate(after) if source != before[layer])
