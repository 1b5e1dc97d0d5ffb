"""Least squares on data that is seen once, piece by piece: a new W_O for what a follower's heads compute now.

The solution stays near the weights that are there: it minimises |F W' - Y|^2 + ridge |W - W0|^2 (Tikhonov
regularisation). The ridge is chosen on pieces that took no part in the solution.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve

Matrix = npt.NDArray[np.float64]
RIDGES = tuple(10.0**i for i in range(-7, 2))  # relative to the mean square of the features


@dataclass
class NormalEquations:
    """What least squares needs of features F [n, k] and targets Y [n, m]: sums that do not grow with n."""

    gram: Matrix  # F'F [k, k]
    cross: Matrix  # F'Y [k, m]
    target: float = 0.0  # |Y|^2

    @classmethod
    def empty(cls, k: int, m: int) -> "NormalEquations":
        return cls(np.zeros((k, k)), np.zeros((k, m)))

    def add(self, features: npt.NDArray[np.float32], targets: npt.NDArray[np.float32]) -> None:
        """Add a piece: features [n, k] and targets [n, m]."""
        self.gram += features.T @ features
        self.cross += features.T @ targets
        self.target += float(np.sum(np.square(targets), dtype=np.float64))

    def __add__(self, other: "NormalEquations") -> "NormalEquations":
        return NormalEquations(self.gram + other.gram, self.cross + other.cross, self.target + other.target)

    def error(self, weights: Matrix) -> float:
        """Return |F W' - Y|^2 / |Y|^2 for weights [m, k]."""
        error = np.sum(weights @ self.gram * weights) - 2 * np.sum(weights.T * self.cross) + self.target
        return max(0.0, float(error)) / self.target if self.target else 0.0

    def solved(self, before: Matrix, ridge: float) -> Matrix:
        """Return the weights [m, k] for one ridge, near the weights `before`."""
        ridged = self.gram.copy()
        ridged[np.diag_indices_from(ridged)] += ridge * (float(np.trace(self.gram)) / len(self.gram) or 1.0)
        weights: Matrix = before + cho_solve(cho_factor(ridged), self.cross - self.gram @ before.T).T
        return weights

    def solutions(self, before: Matrix, ridges: Sequence[float]) -> Iterator[tuple[float, Matrix]]:
        """Yield each ridge with its weights [m, k], all from one decomposition."""
        values, vectors = np.linalg.eigh(self.gram)
        values = np.maximum(values, 0)
        missing = vectors.T @ (self.cross - self.gram @ before.T)
        scale = values.mean() or 1.0
        for ridge in ridges:
            yield ridge, before + (vectors @ (missing / (values + ridge * scale)[:, None])).T


@dataclass(frozen=True)
class Solution:
    """The weights that were chosen. The errors are squared, relative to the targets, and on the held-out pieces.

    `ridge` is None where no new weights were better than those before.
    """

    weights: Matrix  # [m, k]
    ridge: float | None
    error_before: float
    error: float


def solve(fitted: NormalEquations, held_out: NormalEquations, before: Matrix) -> Solution:
    """Choose the ridge whose weights, solved on `fitted`, have the least error on `held_out`.

    The weights of the solution, [m, k], are solved again with that ridge on both.
    """
    error_before = held_out.error(before)
    error, ridge = min((held_out.error(weights), ridge) for ridge, weights in fitted.solutions(before, RIDGES))
    if error >= error_before:
        return Solution(before, None, error_before, error_before)
    return Solution((fitted + held_out).solved(before, ridge), ridge, error_before, error)
