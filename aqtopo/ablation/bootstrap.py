"""How far a difference of scores could be chance: other days, other seeds.

Days: forecasts of one week share their weather, so days are resampled in blocks that follow each other, and
the last day is followed by the first (the circular block bootstrap of Politis and Romano 1992; Wilks,
Statistical Methods in the Atmospheric Sciences, 3rd ed., section 5.3.5). The variants were scored on the same
days, so a draw takes the same days of all of them. Only daily sums are needed: a draw is a weight for each
day, and all draws of all scores are one matrix product. Blocks must outlast the memory of the differences:
where a day remembers 0.5 of the day before, blocks of 10 days hold the truth in about 92% of cases, single
days in 75%.

Seeds: the mean difference over trainings that differ in nothing but the seed, with Student's t.

Shapes: D days, R draws, S seeds, ... any further axes (horizon, pollutant).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Floats = NDArray[np.float64]

LEVEL = 0.95
"""Probability that an interval is meant to hold the truth with."""


def check_blocks(days: int, block: int) -> None:
    """Refuse blocks that are too long for the days that there are.

    Raises:
        ValueError: there are fewer than two of them, or they have no day.
    """
    if block < 1 or days < 2 * block:
        raise ValueError(
            f"{days} test days cannot be resampled in blocks of {block}: give more test days, or shorter "
            "blocks with --block-days."
        )


def draw_days(days: int, block: int, draws: int, seed: int) -> Floats:
    """(R, D) how often each day is taken in each draw: circular blocks of `block` days, D days in all.

    Raises:
        ValueError: as `check_blocks`, or nothing is to be drawn.
    """
    check_blocks(days, block)
    if draws < 1:
        raise ValueError(f"{draws} resamplings of the days are none: ask for more with --draws.")
    rng = np.random.default_rng(seed)
    blocks = -(-days // block)
    starts = rng.integers(days, size=(draws, blocks, 1))
    taken = ((starts + np.arange(block)) % days).reshape(draws, -1)[:, :days]
    flat = taken + days * np.arange(draws)[:, None]
    counts = np.bincount(flat.ravel(), minlength=draws * days)
    return counts.reshape(draws, days).astype(np.float64)


def resampled_rmse(squared: Floats, count: Floats, weights: Floats) -> Floats:
    """(R, ...) the RMSE over the days of each draw.

    Args:
        squared: (D, ...) sum of squared errors of each day.
        count: (D, ...) points that it sums over.
        weights: (R, D) from `draw_days`.
    """
    with np.errstate(invalid="ignore"):  # no points: NaN
        rmse: Floats = np.sqrt(np.tensordot(weights, squared, axes=1) / np.tensordot(weights, count, axes=1))
    return rmse


@dataclass(frozen=True)
class Interval:
    """Bounds that hold the truth with probability `LEVEL`; NaN where they cannot be known.

    Attributes:
        low, high: (...).
    """

    low: Floats
    high: Floats

    def excludes_zero(self) -> NDArray[np.bool_]:
        """(...) whether both bounds have the same sign; false where they are unknown."""
        excluded: NDArray[np.bool_] = (self.low > 0) | (self.high < 0)
        return excluded


def over_days(draws: Floats) -> Interval:
    """The percentile interval of (R, ...) draws."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    return Interval(low, high)


def over_seeds(differences: Floats) -> Interval:
    """Student's interval of the mean of (S, ...) paired differences; unknown for a single seed."""
    seeds = len(differences)
    mean = differences.mean(axis=0)
    if seeds < 2:
        unknown = np.full(mean.shape, np.nan)
        return Interval(unknown, unknown)
    quantile = float(stdtrit(seeds - 1, (1 + LEVEL) / 2))
    margin = quantile * differences.std(axis=0, ddof=1) / np.sqrt(seeds)
    return Interval(mean - margin, mean + margin)
