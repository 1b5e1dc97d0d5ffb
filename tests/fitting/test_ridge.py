"""Ridge regression from normal equations, compared with numpy."""

import numpy as np
import pytest

from shareatt_export.fitting.ridge import RIDGES, NormalEquations, solve

RNG = np.random.default_rng(5)


def test_refits_are_those_of_least_squares():
    features, before = RNG.standard_normal((50, 8)), RNG.standard_normal((3, 8))
    targets = RNG.standard_normal((50, 3))
    normal = NormalEquations.empty(8, 3)
    for part in range(0, 50, 10):
        normal.add(features[part : part + 10], targets[part : part + 10])
    ridge = 0.3
    scale = np.trace(features.T @ features) / 8
    stacked = np.vstack([features, (ridge * scale) ** 0.5 * np.eye(8)])
    wanted = np.vstack([targets - features @ before.T, np.zeros((8, 3))])
    expected = before + np.linalg.lstsq(stacked, wanted)[0].T
    found = normal.solved(before, ridge)
    assert np.allclose(found, expected, rtol=1e-9, atol=1e-12)
    error = np.sum((features @ found.T - targets) ** 2) / np.sum(targets**2)
    assert normal.error(found) == pytest.approx(error, rel=1e-9)


def sums(features, targets):
    normal = NormalEquations.empty(features.shape[1], targets.shape[1])
    normal.add(features, targets)
    return normal


def test_the_ridge_is_chosen_on_held_out_pieces():
    rng = np.random.default_rng(0)
    truth, features = rng.standard_normal((3, 8)), rng.standard_normal((4, 40, 8))
    before = truth + rng.standard_normal((3, 8)) / 2
    noisy = features[0] @ truth.T + 2 * rng.standard_normal((40, 3))
    found = solve(sums(features[0], noisy), sums(features[1], features[1] @ truth.T), before)
    clean = solve(sums(features[2], features[2] @ truth.T), sums(features[3], features[3] @ truth.T), before)
    assert clean.ridge == RIDGES[0] and clean.error < 1e-6 < clean.error_before
    assert np.allclose(clean.weights, truth, atol=1e-4)
    assert found.ridge is not None and found.ridge >= 0.1 and found.error < found.error_before


def test_weights_that_cannot_be_bettered_stay():
    features, truth = RNG.standard_normal((40, 8)), RNG.standard_normal((3, 8))
    wrong = sums(features, RNG.standard_normal((40, 3)))
    found = solve(wrong, sums(features, features @ truth.T), truth)
    assert found.ridge is None and np.array_equal(found.weights, truth)
