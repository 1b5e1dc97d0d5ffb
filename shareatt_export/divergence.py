"""How far the next-token distributions of a model are from those of the dense one, and how well it predicts a text."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .engine import Logits

Z95 = 1.96  # standard errors in half of a 95 % confidence interval
ROWS = 32  # tokens whose distributions are in memory in double precision


@dataclass(frozen=True)
class Mean:
    """Over windows; `half` is half of the 95 % confidence interval, nan for a single window."""

    value: float
    half: float


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


@dataclass
class Divergence:
    """Sums over windows."""

    nll: list[npt.NDArray[np.float64]] = field(default_factory=list)  # a window each
    kl: list[npt.NDArray[np.float64]] = field(default_factory=list)
    same: list[npt.NDArray[np.bool_]] = field(default_factory=list)

    def add(self, logits: Logits, expected: Logits, targets: Sequence[int]) -> None:
        """One window: [n_tokens, n_vocab] of a model and of the dense one, and the tokens that came."""
        nll, kl = np.empty(len(targets)), np.empty(len(targets))
        came = np.asarray(targets)
        for start in range(0, len(targets), ROWS):
            rows = slice(start, start + ROWS)
            ours, theirs = _log_softmax(logits[rows]), _log_softmax(expected[rows])
            nll[rows] = -ours[np.arange(len(ours)), came[rows]]
            kl[rows] = (np.exp(theirs) * (theirs - ours)).sum(-1)
        self.nll.append(nll)
        self.kl.append(kl)
        self.same.append(logits.argmax(-1) == expected.argmax(-1))

    def quality(self) -> Quality:
        kl = np.concatenate(self.kl)
        same = float(np.concatenate(self.same).mean())
        return Quality(mean(self.nll), mean(self.kl), float(np.quantile(kl, 0.99)), float(kl.max()), same)


def _log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    shifted: npt.NDArray[np.float64] = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted


def mean(per_window: Sequence[npt.NDArray[np.float64]]) -> Mean:
    """Windows are the sample: tokens of one window hang together."""
    means = np.array([window.mean() for window in per_window])
    half = Z95 * float(means.std(ddof=1)) / len(means) ** 0.5 if len(means) > 1 else float("nan")
    return Mean(float(means.mean()), half)
