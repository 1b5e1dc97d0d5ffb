"""Perplexity and KL by the position of the predicted token: whether what a model loses grows with depth."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from .intervals import Mean, mean

Matrix = npt.NDArray[np.float64]
FIRST_EDGE = 128


@dataclass(frozen=True)
class PositionScores:
    """One model in one bucket. `log_ratio`: nats per token more than the dense model, window by window."""

    nll: Mean
    kl: Mean
    log_ratio: Mean


@dataclass(frozen=True)
class Bucket:
    first: int  # positions, both included
    last: int
    models: tuple[PositionScores, ...]


def edges(n_ctx: int) -> list[int]:
    """0, 128, 256, 512 and so on by doubling; the last is n_ctx."""
    inner, edge = [0], FIRST_EDGE
    while edge < n_ctx:
        inner.append(edge)
        edge *= 2
    return [*inner, n_ctx]


def buckets(nll: Sequence[Matrix], kl: Sequence[Matrix]) -> tuple[Bucket, ...]:
    """`nll` and `kl` of each model, the dense one first: [n_windows, n_ctx - 1], for the tokens at 1 to n_ctx - 1."""
    found = []
    for start, end in pairwise(edges(nll[0].shape[1] + 1)):
        columns = slice(max(start, 1) - 1, end - 1)
        dense = nll[0][:, columns]
        models = tuple(
            PositionScores(mean(ours[:, columns]), mean(apart[:, columns]), mean(ours[:, columns] - dense))
            for ours, apart in zip(nll, kl, strict=True)
        )
        found.append(Bucket(max(start, 1), end - 1, models))
    return tuple(found)
