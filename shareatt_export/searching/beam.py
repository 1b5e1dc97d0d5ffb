"""Which layers should share? A search over source maps by what they cost, whoever measures that.

Errors of single pairs say where to look (and, added up, give a first guess by dynamic programming); what a whole map
costs is measured, as costs do not add up: KL to the dense model, in practice. Followers are added one at a time to the
best few maps, and at last exchanged for others as long as that helps.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from ..model.candidate_pairs import Pair
from ..model.spans import SourceMap, followers

Cost = Callable[[SourceMap], float]


@dataclass(frozen=True)
class Settings:
    beam: int = 3  # maps that are followed up
    candidates: int = 6  # further followers tried for each
    rounds: int = 3  # of exchanges


@dataclass(frozen=True)
class CostedMap:
    """The best map with so many followers."""

    source_layers: SourceMap
    cost: float

    @property
    def n_followers(self) -> int:
        return len(followers(self.source_layers))


Enough = Callable[[CostedMap], bool]  # whether no further follower is needed


def with_follower(source_layers: SourceMap, source: int, follower: int) -> SourceMap:
    return (*source_layers[:follower], source, *source_layers[follower + 1 :])


def additions(source_layers: SourceMap, errors: Mapping[Pair, float]) -> Iterator[SourceMap]:
    """The map with one follower more, for each layer that can be one, with its best source; the cheapest first."""
    sources = {source_layers[layer] for layer in followers(source_layers)}
    best: dict[int, tuple[float, int]] = {}
    for (source, follower), error in errors.items():
        free = source_layers[follower] == follower and follower not in sources and source_layers[source] == source
        if free and (follower not in best or (error, source) < best[follower]):
            best[follower] = error, source
    for _, source, follower in sorted((error, source, follower) for follower, (error, source) in best.items()):
        yield with_follower(source_layers, source, follower)


def guess(n_layer: int, errors: Mapping[Pair, float], n: int) -> SourceMap | None:
    """The contiguous spans with n followers whose squared errors add up to the least; None where there are none.

    Dynamic programming over layers: best[i][k] is the least for the first i layers with k followers.
    """
    best: list[dict[int, tuple[float, SourceMap]]] = [{0: (0.0, ())}]
    for end in range(1, n_layer + 1):
        found: dict[int, tuple[float, SourceMap]] = {}
        for source in range(end):
            pairs = [Pair(source, follower) for follower in range(source + 1, end)]
            if any(pair not in errors for pair in pairs):
                continue
            block = sum(errors[pair] ** 2 for pair in pairs)
            for k, (cost, before) in best[source].items():
                total = k + len(pairs)
                if total <= n and (total not in found or cost + block < found[total][0]):
                    found[total] = cost + block, (*before, *(source for _ in range(source, end)))
        best.append(found)
    return best[n_layer][n][1] if n in best[n_layer] else None


class Search:
    """`errors` of the pairs that are possible at all; `cost` of a map, which is what counts."""

    def __init__(self, n_layer: int, errors: Mapping[Pair, float], cost: Cost, settings: Settings) -> None:
        self.n_layer, self.errors, self.cost, self.settings = n_layer, errors, cost, settings
        self.singles: dict[int, float] = {}  # cost of each follower alone: tells more than the error of its output

    def path(self, enough: Enough) -> list[CostedMap]:
        """The best map for each number of followers, from none up to where it is enough or none can be added."""
        dense = self._step(tuple(range(self.n_layer)))
        path, beam = [dense], [dense]
        while not enough(path[-1]):
            found = {way for step in beam for way in self._ways(step.source_layers)}
            if not self.singles:
                steps = [self._step(way) for way in sorted(found)]
                self.singles = {_new(dense.source_layers, step.source_layers): step.cost for step in steps}
            first = guess(self.n_layer, self.errors, len(path))
            steps = [self._step(way) for way in sorted(found | {first} if first else found)]
            if not steps:
                break
            beam = sorted(steps, key=lambda step: step.cost)[: self.settings.beam]
            path.append(beam[0])
        return path

    def guesses(self, enough: Enough) -> list[CostedMap]:
        """The same without a search: a cost is measured only once for each number of followers.

        Where no contiguous spans have so many, as in models whose layers attend differently by turns, the follower with
        the least error is added.
        """
        path = [self._step(tuple(range(self.n_layer)))]
        while not enough(path[-1]):
            found = guess(self.n_layer, self.errors, len(path))
            found = found or next(additions(path[-1].source_layers, self.errors), None)
            if found is None:
                break
            path.append(self._step(found))
        return path

    def exchanged(self, step: CostedMap) -> CostedMap:
        """With single followers given up for others, or given to other sources, as long as that is cheaper."""
        for _ in range(self.settings.rounds):
            before = step
            for follower in followers(before.source_layers):
                if step.source_layers[follower] != follower:
                    step = min([step, *map(self._step, self._exchanges(step.source_layers, follower))], key=_cost_of)
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
        ways = [with_follower(fewer, source, follower) for _, source in sources[: self.settings.candidates]]
        return [way for way in self._ways(fewer) + ways if way != source_layers]

    def _ways(self, source_layers: SourceMap) -> list[SourceMap]:
        ways = list(additions(source_layers, self.errors))
        if not self.singles:
            return ways
        return sorted(ways, key=lambda way: self.singles[_new(source_layers, way)])[: self.settings.candidates]

    def _step(self, source_layers: SourceMap) -> CostedMap:
        return CostedMap(source_layers, self.cost(source_layers))


def _cost_of(step: CostedMap) -> float:
    return step.cost


def _new(before: SourceMap, after: SourceMap) -> int:
    """The follower that was added."""
    return next(layer for layer, source in enumerate(after) if source != before[layer])
