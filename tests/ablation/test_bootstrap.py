"""Intervals are held against what they promise: how often they hold a truth that is known."""

import numpy as np
import pytest

from aqtopo.ablation.bootstrap import draw_days, over_days, over_seeds, resampled_rmse

WORLDS, DAYS, BLOCK, DRAWS = 300, 365, 10, 400


def correlated(rng: np.random.Generator, memory: float) -> np.ndarray:
    """(DAYS,) noise of variance 1 that remembers the day before."""
    values = np.empty(DAYS)
    values[0] = rng.normal()
    for day in range(1, DAYS):
        values[day] = memory * values[day - 1] + np.sqrt(1 - memory**2) * rng.normal()
    return values


def share_that_holds_the_truth(block: int) -> float:
    """Of many worlds, in how many the interval of a mean over correlated days holds the true mean, 0."""
    rng = np.random.default_rng(1)
    weights = draw_days(DAYS, block, DRAWS, seed=2) / DAYS
    held = 0
    for _ in range(WORLDS):
        interval = over_days(weights @ correlated(rng, memory=0.5))
        held += not bool(interval.excludes_zero())
    return held / WORLDS


def test_blocks_hold_the_truth_as_often_as_promised_and_single_days_do_not() -> None:
    assert 0.89 < share_that_holds_the_truth(BLOCK) < 0.97
    assert share_that_holds_the_truth(1) < 0.8


def test_student_holds_the_truth_with_three_seeds() -> None:
    rng = np.random.default_rng(3)
    interval = over_seeds(rng.normal(0.0, 1.0, (3, 4000)))
    assert 0.94 < 1 - interval.excludes_zero().mean() < 0.96


def test_one_seed_knows_nothing_of_others() -> None:
    interval = over_seeds(np.ones((1, 2)))
    assert np.isnan(interval.low).all()
    assert not interval.excludes_zero().any()


def test_a_draw_takes_as_many_days_as_there_are_in_circular_blocks() -> None:
    weights = draw_days(days=10, block=4, draws=500, seed=0)
    assert weights.shape == (500, 10)
    assert (weights.sum(axis=1) == 10).all()
    # Circular: no day is favoured, the first and the last included.
    np.testing.assert_allclose(weights.mean(axis=0), 1.0, atol=0.12)


def test_resampled_rmse_weighs_days_by_their_points() -> None:
    squared, count = np.array([[4.0], [100.0]]), np.array([[1.0], [4.0]])
    rmse = resampled_rmse(squared, count, np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 2.0]]))
    np.testing.assert_allclose(rmse[:, 0], [np.sqrt(104 / 5), 2.0, 5.0])


@pytest.mark.parametrize(("days", "block"), [(19, 10), (100, 0)])
def test_too_few_days_are_refused(days: int, block: int) -> None:
    with pytest.raises(ValueError, match="cannot be resampled"):
        draw_days(days, block, 100, seed=0)


def test_no_draw_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="0 resamplings of the days are none"):
        draw_days(days=100, block=10, draws=0, seed=0)
