"""Perplexity and KL by the position of the predicted token: they show whether a model loses more in long contexts."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from .divergence import Divergence
from .intervals import Mean, mean

FIRST_EDGE = 128


@dataclass(frozen=True)
class PositionScores:
    """The scores of one model in one bucket, in nats per token.

    Attributes:
        nll: Negative log-likelihood.
        kl: KL divergence from the dense model.
        log_ratio: NLL less that of the dense model.
    """

    nll: Mean
    kl: Mean
    log_ratio: Mean


@dataclass(frozen=True)
class Bucket:
    """The scores of tokens by their position in a window.

    Attributes:
        first: The first position, from 1.
        last: The last position, included.
        models: The scores of each model, the dense one first.
    """

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


def buckets(divergences: Sequence[Divergence]) -> tuple[Bucket, ...]:
    """Return the buckets of a context length, from the scores of each model for the tokens from position 1 on."""
    found = []
    for start, end in pairwise(edges(divergences[0].nll.shape[1] + 1)):
        columns = slice(max(start, 1) - 1, end - 1)
        models = tuple(
            PositionScores(mean(each.nll[:, columns]), mean(each.kl[:, columns]), mean(each.log_ratio[:, columns]))
            for each in divergences
        )
        found.append(Bucket(max(start, 1), end - 1, models))
    return tuple(found)
