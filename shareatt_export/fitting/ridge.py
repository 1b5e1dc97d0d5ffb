"""Least squares on data that is seen once, piece by piece: W_O again, for what a follower's heads now bring.

The solution stays near the weights that are there: it minimises |F W' - Y|^2 + ridge |W - W0|^2. How near is chosen on
pieces that took no part in it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]
RIDGES = tuple(10.0**i for i in range(-7, 2))  # relative to the mean square of the features


@dataclass
class Normal:
    """What least squares needs of features F [n, k] and targets Y [n, m]: sums that do not grow with n."""

    gram: Matrix  # F'F [k, k]
    cross: Matrix  # F'Y [k, m]
    target: float = 0.0  # |Y|^2

    @classmethod
    def empty(cls, k: int, m: int) -> "Normal":
        return cls(np.zeros((k, k)), np.zeros((k, m)))

    def add(self, features: npt.NDArray[np.float32], targets: npt.NDArray[np.float32]) -> None:
        self.gram += features.T @ features
        self.cross += features.T @ targets
        self.target += float(np.sum(np.square(targets), dtype=np.float64))

    def __add__(self, other: "Normal") -> "Normal":
        return Normal(self.gram + other.gram, self.cross + other.cross, self.target + other.target)

    def error(self, weights: Matrix) -> float:
        """|F W' - Y|^2 / |Y|^2 for weights [m, k]"""
        error = np.sum(weights @ self.gram * weights) - 2 * np.sum(weights.T * self.cross) + self.target
        return max(0.0, float(error)) / self.target if self.target else 0.0

    def path(self, before: Matrix, ridges: Sequence[float]) -> Iterator[tuple[float, Matrix]]:
        """The weights [m, k] for each ridge, from one decomposition."""
        values, vectors = np.linalg.eigh(self.gram)
        values = np.maximum(values, 0)
        missing = vectors.T @ (self.cross - self.gram @ before.T)
        scale = values.mean() or 1.0
        for ridge in ridges:
            yield ridge, before + (vectors @ (missing / (values + ridge * scale)[:, None])).T

    def solved(self, before: Matrix, ridge: float) -> Matrix:
        ((_, weights),) = self.path(before, [ridge])
        return weights


@dataclass(frozen=True)
class Solution:
    """`ridge` None: no refit was better than the weights that were there. Errors are of the held-out pieces."""

    weights: Matrix  # [m, k]
    ridge: float | None
    error_before: float
    error: float


def solve(fit: Normal, heldout: Normal, before: Matrix) -> Solution:
    """The ridge that serves the held-out pieces best, and with it the weights [m, k] from all pieces."""
    error_before = heldout.error(before)
    error, ridge = min((heldout.error(weights), ridge) for ridge, weights in fit.path(before, RIDGES))
    if error >= error_before:
        return Solution(before, None, error_before, error_before)
    return Solution((fit + heldout).solved(before, ridge), ridge, error_before, error)
