"""Every pair of layers that could share: how well, and with which weights, each looked at by itself.

For a search the followers of all pairs are fitted to what the dense model shows; an export then fits the chosen ones
again, one upon the other (fit.py). Memory is bounded: pairs are fitted in as many passes as that takes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..fitting import heads
from ..fitting.fit import moved
from ..fitting.observer import Observer, head_outputs
from ..fitting.ridge import Normal
from ..fitting.trial_model import TrialModel
from ..formats.gguf_header import Header
from ..formats.tensor_copies import RawRows, TensorCopy, float_rows, raw_rows, read_f32
from ..model.candidate_pairs import Pair
from ..model.facts import Facts
from ..plan.projections import Projections, projections
from ..system.progress import Fraction

RIDGE = 1e-2  # what held-out text chose most often
MEMORY = 1 << 30  # bytes of normal equations at a time


@dataclass(frozen=True)
class PairFit:
    """`error` is that of the follower's attention output, relative to the residual stream; squares add up."""

    error: float
    changes: Mapping[TensorCopy, RawRows]


@dataclass(frozen=True)
class Tokens:
    """Windows to fit with; their heads are told apart by the first few."""

    windows: Sequence[Sequence[int]]
    n_align: int


class Fitter:
    def __init__(self, header: Header, facts: Facts, trial: TrialModel, observer: Observer, tokens: Tokens) -> None:
        self._header, self._facts, self._trial = header, facts, trial
        self._observer, self._tokens = observer, tokens

    def fits(self, pairs: Sequence[Pair], align: bool, refit: bool, watch: Fraction) -> dict[Pair, PairFit]:
        followers = {follower for _, follower in pairs}
        tensors = {layer: projections(self._header, self._facts, layer) for layer in followers}
        order = {pair: tuple(range(self._facts.n_head[pair.follower])) for pair in pairs}
        if align:
            order = self._align(pairs, tensors, partial(_part, watch, 0, 0.3))
        done: dict[Pair, PairFit] = {}
        for group in self._groups(pairs, tensors):
            before, share = len(done) / len(pairs), len(group) / len(pairs)
            part = partial(_part, watch, 0.3 + 0.7 * before, 0.7 * share)
            done |= self._solve(group, tensors, order, align, refit, part)
        return done

    def _align(
        self, pairs: Sequence[Pair], tensors: Mapping[int, Projections], watch: Fraction
    ) -> dict[Pair, heads.Heads]:
        costs = {pair: np.zeros((self._facts.n_head[pair.follower],) * 2) for pair in pairs}
        weights = {layer: read_f32(of.output) for layer, of in tensors.items()}
        windows = self._tokens.windows[: self._tokens.n_align]
        for i, tokens in enumerate(windows):
            watch(i / len(windows))
            seen = self._observer.layers(tokens)
            for pair in pairs:
                source, follower = seen[pair.source], seen[pair.follower]
                projection = weights[pair.follower]
                costs[pair] += heads.costs(source.weights, follower.weights, follower.values, projection)
        return {pair: heads.match(costs[pair], self._facts.n_head_kv[pair.follower]) for pair in pairs}

    def _groups(self, pairs: Sequence[Pair], tensors: Mapping[int, Projections]) -> Iterator[list[Pair]]:
        """Pairs whose normal equations fit into memory together."""
        group: list[Pair] = []
        used = 0
        for pair in pairs:
            row, rows = tensors[pair.follower].output.shape
            n_bytes = 8 * row * (row + rows)
            if group and used + n_bytes > MEMORY:
                yield group
                group, used = [], 0
            group.append(pair)
            used += n_bytes
        yield group

    def _solve(
        self,
        pairs: Sequence[Pair],
        tensors: Mapping[int, Projections],
        order: Mapping[Pair, heads.Heads],
        align: bool,
        refit: bool,
        watch: Fraction,
    ) -> dict[Pair, PairFit]:
        normals = {pair: Normal.empty(*tensors[pair.follower].output.shape) for pair in pairs}
        residual = dict.fromkeys(pairs, 0.0)
        weights = {layer: read_f32(of.output) for layer, of in tensors.items()}
        n_tokens = 0
        for i, tokens in enumerate(self._tokens.windows):
            watch(i / len(self._tokens.windows))
            seen = self._observer.layers(tokens)
            n_tokens += len(tokens)
            for pair in pairs:
                source, follower = seen[pair.source], seen[pair.follower]
                target = head_outputs(follower.weights, follower.values) @ weights[pair.follower].T
                features = head_outputs(source.weights, follower.values, heads.order(order[pair]))
                normals[pair].add(features, target)
                residual[pair] += float(np.sum(np.square(follower.input), dtype=np.float64))
        fits = {}
        for pair in pairs:
            of, normal = tensors[pair.follower], normals[pair]
            n_head_kv = self._facts.n_head_kv[pair.follower]
            changes = moved(self._trial, of, order[pair], n_head_kv) if align else {}
            solved = float_rows(changes.get(of.output, raw_rows(of.output)), of.output.type).astype(np.float64)
            if refit:
                solved = normal.solved(solved, RIDGE)
                importance = (np.diag(normal.gram) / n_tokens).astype(np.float32)
                changes[of.output] = self._trial.encoded(solved.astype(np.float32), of.output.type, importance)
            error = (normal.error(solved) * normal.target / residual[pair]) ** 0.5
            fits[pair] = PairFit(error, changes)
        return fits


def _part(watch: Fraction, before: float, share: float, fraction: float) -> None:
    watch(before + share * fraction)
