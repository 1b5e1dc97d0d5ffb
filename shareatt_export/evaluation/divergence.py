"""How far the next-token distributions of a model are from those of the dense one, and how well it predicts a text."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..llamacpp.engine import Logits, log_softmax
from .intervals import Mean, mean

ROWS = 32  # tokens whose distributions are in memory in double precision


@dataclass(frozen=True)
class Quality:
    """`nll` and `kl` in nats per token; KL is from the dense model's distribution to the other's."""

    nll: Mean
    kl: Mean
    kl_p99: float
    kl_max: float
    same_top: float  # share of tokens for which both would choose the same next one

    @property
    def perplexity(self) -> float:
        return float(np.exp(self.nll.value))

    @property
    def perplexity_half(self) -> float:
        """Half of its confidence interval, which is symmetric for the logarithm only."""
        return self.perplexity * float(np.expm1(self.nll.half))


class Divergence:
    """Of one model, [n_windows, n_tokens]: each token that was predicted."""

    def __init__(self, n_windows: int, n_tokens: int) -> None:
        self.nll, self.kl = np.empty((n_windows, n_tokens)), np.empty((n_windows, n_tokens))
        self.same = np.empty((n_windows, n_tokens), np.bool_)

    def add(self, window: int, start: int, logits: Logits, expected: Logits, targets: npt.NDArray[np.int64]) -> None:
        """[n_tokens, n_vocab] of the model and of the dense one, and the tokens that came."""
        for first in range(0, len(targets), ROWS):
            rows = slice(first, min(first + ROWS, len(targets)))
            at = (window, slice(start + rows.start, start + rows.stop))
            ours, theirs = log_softmax(logits[rows]), log_softmax(expected[rows])
            self.nll[at] = -ours[np.arange(len(ours)), targets[rows]]
            self.kl[at] = (np.exp(theirs) * (theirs - ours)).sum(-1)
            self.same[at] = logits[rows].argmax(-1) == expected[rows].argmax(-1)

    def quality(self, first: int = 0) -> Quality:
        """Of the columns from `first` on."""
        nll, kl = self.nll[:, first:], self.kl[:, first:]
        same = float(self.same[:, first:].mean())
        return Quality(mean(nll), mean(kl), float(np.quantile(kl, 0.99)), float(kl.max()), same)
