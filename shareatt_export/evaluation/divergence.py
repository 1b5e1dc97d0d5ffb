"""KL divergence of a model's next-token distributions from the dense model's, and the model's perplexity on a text."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..llamacpp.engine import Logits
from .intervals import Mean, mean

ROWS = 32  # number of tokens whose distributions are computed at a time: few enough for the cache of a processor


@dataclass(frozen=True)
class Quality:
    """How well a model predicts a text, and how close it is to the dense model.

    NLL and KL are in nats per token; KL is from the dense model's next-token distribution to that of the model.

    Attributes:
        nll: Negative log-likelihood of the text.
        log_ratio: NLL less that of the dense model.
        kl: KL divergence.
        kl_p99: 99th percentile of the KL divergences of single tokens.
        kl_max: The largest of them.
        same_top: Share of the tokens for which both models rate the same next token highest, from 0 to 1.
    """

    nll: Mean
    log_ratio: Mean
    kl: Mean
    kl_p99: float
    kl_max: float
    same_top: Mean

    @property
    def perplexity(self) -> float:
        """The exponential of the mean NLL."""
        return float(np.exp(self.nll.value))

    @property
    def perplexity_ratio(self) -> Mean:
        """The perplexity divided by that of the dense model.

        Both read the same windows, so the interval is much smaller than that of a perplexity. `half` is its upper half;
        it is symmetric for the logarithm only.
        """
        ratio = float(np.exp(self.log_ratio.value))
        return Mean(ratio, ratio * float(np.expm1(self.log_ratio.half)))


class Divergence:
    """Collects the scores of one model for each predicted token.

    `nll`, `log_ratio`, `kl` and `same`: [n_windows, n_tokens].
    """

    def __init__(self, n_windows: int, n_tokens: int) -> None:
        self.nll, self.log_ratio, self.kl = (np.empty((n_windows, n_tokens)) for _ in range(3))
        self.same = np.empty((n_windows, n_tokens), np.bool_)

    def add(self, window: int, start: int, logits: Logits, expected: Logits, targets: npt.NDArray[np.int64]) -> None:
        """Add the tokens of a window from column `start` on.

        logits, expected: [n_tokens, n_vocab] of the model and of the dense model; targets: the next tokens [n_tokens].
        """
        for first in range(0, len(targets), ROWS):
            rows = slice(first, min(first + ROWS, len(targets)))
            at = (window, slice(start + rows.start, start + rows.stop))
            ours, theirs = logits[rows], expected[rows]
            next_tokens = np.arange(len(ours)), targets[rows]
            log_sum, log_sum_dense = log_sum_exp(ours), log_sum_exp(theirs)
            self.nll[at] = log_sum - ours[next_tokens]
            self.log_ratio[at] = self.nll[at] - (log_sum_dense - theirs[next_tokens])
            self.kl[at] = _kl(ours, log_sum, theirs, log_sum_dense)
            self.same[at] = ours.argmax(-1) == theirs.argmax(-1)

    def quality(self, first: int = 0, windows: Sequence[int] | None = None) -> Quality:
        """Return the scores of the tokens in the columns from `first` to the last, in all windows or in some."""
        rows = slice(None) if windows is None else list(windows)
        nll, log_ratio, kl, same = (
            scores[rows, first:] for scores in (self.nll, self.log_ratio, self.kl, self.same.astype(np.float64))
        )
        return Quality(mean(nll), mean(log_ratio), mean(kl), float(np.quantile(kl, 0.99)), float(kl.max()), mean(same))


Column = npt.NDArray[np.float64]  # [n_tokens]


def log_sum_exp(logits: Logits) -> Column:
    """Return log(sum(exp(x))) of each row of logits [n_tokens, n_vocab]."""
    highest = logits.max(-1, keepdims=True)
    sums: Column = np.exp(logits - highest).sum(-1, dtype=np.float64)
    log_sums: Column = np.log(sums) + highest[:, 0]
    return log_sums


def _kl(ours: Logits, log_sum_ours: Column, theirs: Logits, log_sum_theirs: Column) -> Column:
    """Return KL(theirs || ours) of each row.

    Single precision is enough for exp() and for the logarithm of the ratio, which is 0 where the rows are equal; their
    products are added up in double precision.
    """
    log_ratio = (theirs - ours) - (log_sum_theirs - log_sum_ours)[:, None].astype(np.float32)
    probabilities = np.exp(theirs - log_sum_theirs[:, None].astype(np.float32))
    kl: Column = (probabilities * log_ratio).sum(-1, dtype=np.float64)
    return kl
