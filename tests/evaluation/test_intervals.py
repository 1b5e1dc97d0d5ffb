"""Confidence intervals and the sign test, compared with their definitions."""

import math

import numpy as np
import pytest

from shareatt_export.evaluation.intervals import mean, sign_test, wilson


def test_the_interval_is_over_windows():
    windows = [np.array([1.0, 3.0]), np.array([4.0, 4.0]), np.array([6.0, 6.0])]
    found = mean(windows)
    assert found.value == 4 and found.half == pytest.approx(1.96 * 2 / 3**0.5)
    assert math.isnan(mean(windows[:1]).half)


def test_wilson_interval():
    """The bounds are the two solutions p of (share - p)^2 = z^2 p (1 - p) / n."""
    for n_right, n in ((8, 10), (0, 10), (10, 10), (62, 200)):
        for p in wilson(n_right, n):
            assert (n_right / n - p) ** 2 == pytest.approx(1.96**2 * p * (1 - p) / n, abs=1e-12)
    low, high = wilson(8, 10)
    assert low < 0.8 < high and wilson(0, 10)[0] == 0 and wilson(10, 10)[1] == 1


@pytest.mark.parametrize("lost, won, p", [(0, 0, 1), (5, 5, 1), (1, 9, 22 / 1024), (9, 1, 22 / 1024), (6, 0, 2 / 64)])
def test_sign_test(lost, won, p):
    assert sign_test(lost, won) == pytest.approx(p)
