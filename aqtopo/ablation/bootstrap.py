"""Confidence intervals of score differences over test days and over seeds.

Days: forecasts of one week share their weather, so days are resampled in blocks (circular block bootstrap of
Politis and Romano 1992; Wilks, Statistical Methods in the Atmospheric Sciences, 3rd ed., section 5.3.5). All
variants use the same days in a draw. A draw is a weight for each day, so one matrix product of weights and
daily sums gives all draws of all scores. Blocks must be longer than the correlation time: at a lag-1
correlation of 0.5, the coverage is about 92% with blocks of 10 days and 75% with single days.

Seeds: mean difference over trainings that differ only in the seed, with Student's t.

Shapes: D days, R draws, S seeds, ... any further axes (horizon, pollutant).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Floats = NDArray[np.float64]

LEVEL = 0.95
"""Nominal coverage of the intervals."""


def check_blocks(days: int, block: int) -> None:
    """Refuse blocks that are too long for the number of test days.

    Raises:
        ValueError: there are fewer than two blocks, or a block is empty.
    """
    if block < 1 or days < 2 * block:
        raise ValueError(
            f"{days} test days cannot be resampled in blocks of {block}. Use more test days or a smaller "
            "--block-days."
        )


def draw_days(days: int, block: int, draws: int, seed: int) -> Floats:
    """Return how often each draw contains each day, (R, D): circular blocks, D days per draw.

    Raises:
        ValueError: `check_blocks` fails, or there are no draws.
    """
    check_blocks(days, block)
    if draws < 1:
        raise ValueError(f"--draws {draws} is not positive. Use at least 1.")
    rng = np.random.default_rng(seed)
    blocks = -(-days // block)
    starts = rng.integers(days, size=(draws, blocks, 1))
    taken = ((starts + np.arange(block)) % days).reshape(draws, -1)[:, :days]
    flat = taken + days * np.arange(draws)[:, None]
    counts = np.bincount(flat.ravel(), minlength=draws * days)
    return counts.reshape(draws, days).astype(np.float64)


def resampled_rmse(squared: Floats, count: Floats, weights: Floats) -> Floats:
    """Return the RMSE (R, ...) over the days of each draw.

    Args:
        squared: (D, ...) sum of squared errors of each day.
        count: (D, ...) number of points in the sum.
        weights: (R, D) from `draw_days`.
    """
    with np.errstate(invalid="ignore"):  # NaN without points
        rmse: Floats = np.sqrt(np.tensordot(weights, squared, axes=1) / np.tensordot(weights, count, axes=1))
    return rmse


@dataclass(frozen=True)
class Interval:
    """Confidence interval of coverage `LEVEL`, (...); NaN if unknown."""

    low: Floats
    high: Floats

    def excludes_zero(self) -> NDArray[np.bool_]:
        """Return true (...) where both bounds have the same sign; false if unknown."""
        return (self.low > 0) | (self.high < 0)


def over_days(draws: Floats) -> Interval:
    """Return the percentile interval of (R, ...) draws."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    return Interval(low, high)


def over_seeds(differences: Floats) -> Interval:
    """Return Student's interval of the mean of (S, ...) paired differences; NaN for a single seed."""
    seeds = len(differences)
    mean = differences.mean(axis=0)
    if seeds < 2:
        unknown = np.full(mean.shape, np.nan)
        return Interval(unknown, unknown)
    quantile = float(stdtrit(seeds - 1, (1 + LEVEL) / 2))
    margin = quantile * differences.std(axis=0, ddof=1) / np.sqrt(seeds)
    return Interval(mean - margin, mean + margin)
