"""Perplexity and KL by the position of the predicted token: they show whether a model loses more in long contexts."""

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
    """The scores of one model in one bucket. `log_ratio`: its NLL less that of the dense model, in nats per token."""

    nll: Mean
    kl: Mean
    log_ratio: Mean


@dataclass(frozen=True)
class Bucket:
    """The positions from `first` to `last`, both included. `models`: scores of each model, the dense one first."""

    first: int
    last: int
    models: tuple[PositionScores, ...]


def edges(n_ctx: int) -> list[int]:
    """Return the positions where buckets begin and end: 0, 128, 256, 512 and so on by doubling; the last is n_ctx."""
    inner, edge = [0], FIRST_EDGE
    while edge < n_ctx:
        inner.append(edge)
        edge *= 2
    return [*inner, n_ctx]


def buckets(nll: Sequence[Matrix], kl: Sequence[Matrix]) -> tuple[Bucket, ...]:
    """Return the buckets of a context length.

    nll, kl: of each model, the dense one first, [n_windows, n_ctx - 1], for the tokens at positions 1 to n_ctx - 1.
    """
    found = []
    for start, end in pairwise(edges(nll[0].shape[1] + 1)):
        columns = slice(max(start, 1) - 1, end - 1)
        dense = nll[0][:, columns]
        models = tuple(
            PositionScores(mean(model_nll[:, columns]), mean(model_kl[:, columns]), mean(model_nll[:, columns] - dense))
            for model_nll, model_kl in zip(nll, kl, strict=True)
        )
        found.append(Bucket(max(start, 1), end - 1, models))
    return tuple(found)
