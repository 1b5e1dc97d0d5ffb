"""Statistics of measured numbers: means over windows, shares of items, items that two models answer differently."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Z95 = 1.96  # standard errors in half of a 95 % confidence interval


@dataclass(frozen=True)
class Mean:
    """A mean over windows.

    Attributes:
        value: The mean.
        half: Half of its 95 % confidence interval; nan for a single window.
    """

    value: float
    half: float


def mean(per_window: Sequence[npt.NDArray[np.float64]] | npt.NDArray[np.float64]) -> Mean:
    """Return the mean over windows, each an array of numbers per token.

    The interval treats windows as the sample, as the tokens of one window depend on each other.
    """
    means = np.array([window.mean() for window in per_window])
    half = Z95 * float(means.std(ddof=1)) / len(means) ** 0.5 if len(means) > 1 else float("nan")
    return Mean(float(means.mean()), half)


def wilson(n_right: int, n: int) -> tuple[float, float]:
    """Return the 95 % score interval of a share (Wilson 1927), which holds for few items too, and at 0 and 1."""
    share, z2 = n_right / n, Z95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def sign_test(lost: int, won: int) -> float:
    """Return the exact two-sided p value if losing and winning an item were equally likely (McNemar's test)."""
    n = lost + won
    tail: int = sum(math.comb(n, k) for k in range(min(lost, won) + 1))
    return min(1.0, 2 * tail / (1 << n))
