"""Coverage of the intervals on data with a known truth."""

import numpy as np
import pytest

from aqtopo.ablation.bootstrap import draw_days, over_days, over_seeds, resampled_rmse

TRIALS, DAYS, BLOCK, DRAWS = 300, 365, 10, 400


def correlated(rng: np.random.Generator, correlation: float) -> np.ndarray:
    """Return noise (DAYS,) of variance 1 with a lag-1 correlation."""
    values = np.empty(DAYS)
    values[0] = rng.normal()
    for day in range(1, DAYS):
        values[day] = correlation * values[day - 1] + np.sqrt(1 - correlation**2) * rng.normal()
    return values


def coverage(block: int) -> float:
    """Return the share of intervals of a mean over correlated days that contain the true mean, 0."""
    rng = np.random.default_rng(1)
    weights = draw_days(DAYS, block, DRAWS, seed=2) / DAYS
    held = 0
    for _ in range(TRIALS):
        interval = over_days(weights @ correlated(rng, correlation=0.5))
        held += not bool(interval.excludes_zero())
    return held / TRIALS


def test_blocks_reach_the_nominal_coverage_and_single_days_do_not() -> None:
    assert 0.89 < coverage(BLOCK) < 0.97
    assert coverage(1) < 0.8


def test_student_interval_reaches_the_nominal_coverage_with_three_seeds() -> None:
    rng = np.random.default_rng(3)
    interval = over_seeds(rng.normal(0.0, 1.0, (3, 4000)))
    assert 0.94 < 1 - interval.excludes_zero().mean() < 0.96


def test_the_interval_of_one_seed_is_unknown() -> None:
    interval = over_seeds(np.ones((1, 2)))
    assert np.isnan(interval.low).all()
    assert not interval.excludes_zero().any()


def test_a_draw_has_as_many_days_in_circular_blocks() -> None:
    weights = draw_days(days=10, block=4, draws=500, seed=0)
    assert weights.shape == (500, 10)
    assert (weights.sum(axis=1) == 10).all()
    # Circular: the first and the last day are as frequent as others.
    np.testing.assert_allclose(weights.mean(axis=0), 1.0, atol=0.12)


def test_resampled_rmse_weights_days_by_their_points() -> None:
    squared, count = np.array([[4.0], [100.0]]), np.array([[1.0], [4.0]])
    rmse = resampled_rmse(squared, count, np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 2.0]]))
    np.testing.assert_allclose(rmse[:, 0], [np.sqrt(104 / 5), 2.0, 5.0])


@pytest.mark.parametrize(("days", "block"), [(19, 10), (100, 0)])
def test_too_few_days_are_refused(days: int, block: int) -> None:
    with pytest.raises(ValueError, match="cannot be resampled"):
        draw_days(days, block, 100, seed=0)


def test_zero_draws_are_refused() -> None:
    with pytest.raises(ValueError, match="--draws 0 is not positive"):
        draw_days(days=100, block=10, draws=0, seed=0)
