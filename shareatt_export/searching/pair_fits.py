"""The error and the fitted weights of every pair of layers that could share, each pair by itself.

For a search, the followers of all pairs are fitted to what the dense model computes. An export then fits the chosen
followers again, each to what the fitted ones before it compute (fitting/fit.py). Memory is bounded: the pairs are
fitted in as many passes over the text as that takes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..fitting import heads
from ..fitting.fit import moved
from ..fitting.observer import ObservedLayer, Observer, head_outputs
from ..fitting.ridge import NormalEquations
from ..fitting.trial_model import TrialModel
from ..formats.gguf_header import Header
from ..formats.tensor_copies import FloatRows, RawRows, TensorCopy, float_rows, raw_rows, read_f32
from ..model.attention_map import AttentionMap
from ..model.candidate_pairs import Pair
from ..model.facts import Facts
from ..model.spans import followers
from ..plan.projections import Projections, projections
from ..system.progress import Fraction, part
from ..system.threads import whole_tasks

RIDGE = 1e-2  # what held-out text chose most often
MAX_BYTES = 2 << 30  # of the normal equations in memory
ALIGN_SHARE = 0.3  # of the time, where heads are aligned


@dataclass(frozen=True)
class PairFit:
    """`error`: norm of what is missing in the follower's attention output, relative to the residual stream.

    `changes`: the follower's fitted tensors, as bytes.
    """

    error: float
    changes: Mapping[TensorCopy, RawRows]


class PairFitter:
    """Fits the followers of pairs on windows of text. `align` and `refit` say how (fitting/fit.py)."""

    def __init__(
        self,
        header: Header,
        facts: Facts,
        trial_model: TrialModel,
        observer: Observer,
        windows: Sequence[Sequence[int]],
        *,
        align: bool,
        refit: bool,
        n_threads: int,
    ) -> None:
        self._header, self._facts, self._trial_model = header, facts, trial_model
        self._observer, self._windows = observer, windows
        self._align, self._refit, self._n_threads = align, refit, n_threads

    def fits(self, pairs: Sequence[Pair], watch: Fraction) -> dict[Pair, PairFit]:
        """Return the fit of each pair. Raises Unsupported where a follower has no output projection."""
        layers = {follower for _, follower in pairs}
        tensors = {layer: projections(self._header, self._facts, layer) for layer in layers}
        weights = {layer: read_f32(each.output) for layer, each in tensors.items()}
        orders = {pair: heads.unmoved(self._facts.n_head[pair.follower]) for pair in pairs}
        if self._align:
            orders = self._aligned(pairs, weights, part(watch, 0, ALIGN_SHARE))
        done: dict[Pair, PairFit] = {}
        for group in _groups(pairs, tensors):
            before, share = len(done) / len(pairs), len(group) / len(pairs)
            of_group = part(watch, ALIGN_SHARE + (1 - ALIGN_SHARE) * before, (1 - ALIGN_SHARE) * share)
            done |= self._fitted(group, tensors, weights, orders, of_group)
        return done

    def _aligned(
        self, pairs: Sequence[Pair], weights: Mapping[int, FloatRows], watch: Fraction
    ) -> dict[Pair, heads.Heads]:
        """Return the best order of the follower's heads for each pair."""
        costs = {pair: np.zeros((self._facts.n_head[pair.follower],) * 2) for pair in pairs}

        def add(observed: Mapping[int, ObservedLayer], pair: Pair) -> None:
            source, follower = pair
            ours = observed[follower]
            costs[pair] += heads.costs(observed[source].weights, ours.weights, ours.values, weights[follower])

        self._for_each_window(self._windows[: heads.ALIGN_WINDOWS], pairs, add, watch)
        return {pair: heads.match(costs[pair], self._facts.n_head_kv[pair.follower]) for pair in pairs}

    def _fitted(
        self,
        pairs: Sequence[Pair],
        tensors: Mapping[int, Projections],
        weights: Mapping[int, FloatRows],
        orders: Mapping[Pair, heads.Heads],
        watch: Fraction,
    ) -> dict[Pair, PairFit]:
        equations = {pair: NormalEquations.empty(*tensors[pair.follower].output.shape) for pair in pairs}
        residuals = dict.fromkeys(pairs, 0.0)

        def add(observed: Mapping[int, ObservedLayer], pair: Pair) -> None:
            source, follower = observed[pair.source], observed[pair.follower]
            targets = head_outputs(follower.weights, follower.values) @ weights[pair.follower].T
            features = head_outputs(source.weights, follower.values, heads.heads_by_place(orders[pair]))
            equations[pair].add(features, targets)
            residuals[pair] += follower.residual

        def solved(pair: Pair) -> PairFit:
            return self._solved(pair, tensors[pair.follower], orders[pair], equations[pair], residuals[pair])

        self._for_each_window(self._windows, pairs, add, watch)
        with whole_tasks(self._n_threads) as pool:
            return dict(zip(pairs, pool.map(solved, pairs), strict=True))

    def _for_each_window(
        self,
        windows: Sequence[Sequence[int]],
        pairs: Sequence[Pair],
        add: Callable[[Mapping[int, ObservedLayer], Pair], None],
        watch: Fraction,
    ) -> None:
        """Call `add` for each pair with what the model computes on each window."""
        for i, tokens in enumerate(windows):
            watch(i / len(windows))
            observed = self._observer.layers(tokens)
            with whole_tasks(self._n_threads) as pool:
                list(pool.map(partial(add, observed), pairs))

    def _solved(
        self, pair: Pair, tensors: Projections, order: heads.Heads, equations: NormalEquations, residual: float
    ) -> PairFit:
        output, n_head_kv = tensors.output, self._facts.n_head_kv[pair.follower]
        changes = moved(self._trial_model, tensors, order, n_head_kv) if self._align else {}
        solved = float_rows(changes.get(output, raw_rows(output)), output.type).astype(np.float64)
        if self._refit:
            n_tokens = sum(map(len, self._windows))
            solved = equations.solved(solved, RIDGE)
            importance = (np.diag(equations.gram) / n_tokens).astype(np.float32)
            changes[output] = self._trial_model.encoded(solved.astype(np.float32), output.type, importance)
        error = (equations.error(solved) * equations.target / residual) ** 0.5
        return PairFit(error, changes)


def fitted(fits: Mapping[Pair, PairFit], attention: AttentionMap) -> dict[TensorCopy, RawRows]:
    """Return the fitted tensors of the layers that follow others as a whole.

    Pairs out of reach, which only baselines have, are not fitted.
    """
    source_layers = attention.source_layers or ()
    pairs = [Pair(source_layers[layer], layer) for layer in followers(source_layers)]
    return {copy: raw for pair in pairs if pair in fits for copy, raw in fits[pair].changes.items()}


def _groups(pairs: Sequence[Pair], tensors: Mapping[int, Projections]) -> Iterator[list[Pair]]:
    """Yield the pairs in groups whose normal equations fit into memory together."""
    group: list[Pair] = []
    used = 0
    for pair in pairs:
        row, rows = tensors[pair.follower].output.shape
        n_bytes = 8 * row * (row + rows)
        if group and used + n_bytes > MAX_BYTES:
            yield group
            group, used = [], 0
        group.append(pair)
        used += n_bytes
    yield group
