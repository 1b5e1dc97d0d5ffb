"""The learning-rate schedule and the limits of a training run."""

import pytest

from shareatt_export.healing import train


def test_a_run_ends_with_the_first_limit_and_its_rate_rises_and_falls():
    both = train.Schedule(1.0, 1, 0, minutes=1, steps=100)
    assert [both.done(25, 30), both.done(50, 15), both.done(100, 0), both.done(0, 61)] == [0.5, 0.5, 1, 1]
    assert train.Schedule(1.0, 1, 0, None, 10).done(3, 1e9) == 0.3
    rates = [both.rate(done) for done in (0, 0.025, 0.05, 0.5, 0.99)]
    assert rates[0] < rates[1] < rates[2] and rates[2:] == pytest.approx([0.95, 0.5, 0.01])
