"""Made forecasts and truths, summed the way `aqtopo evaluate` does."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from aqtopo.evaluation.points import WHOLE, Areas, BoolArray, FloatArray, make_scored_batch
from aqtopo.evaluation.scores import ErrorSums, ScoreAxes, overall

FIRST = np.datetime64("2018-02-27T06", "h")
Batch = tuple[Mapping[str, FloatArray], FloatArray, BoolArray]


def init_times(count: int) -> np.ndarray:
    """Initial times 15 h apart, across the end of a season."""
    return FIRST + 15 * np.arange(count) * np.timedelta64(1, "h")


def whole_domain(shape: tuple[int, ...]) -> Areas:
    return Areas((WHOLE,), (WHOLE,), np.ones((1, *shape[-2:]), dtype=np.bool_), np.ones(shape[-2:]))


def summed(
    *batches: Batch, pollutants: Sequence[str], horizons_h: Sequence[int], areas: Areas | None = None
) -> ErrorSums:
    """Sums of batches whose initial times follow one another."""
    names = tuple(batches[0][0])
    times = init_times(sum(len(truth) for _, truth, _ in batches))
    days = np.unique(times.astype("datetime64[D]"))
    areas = areas or whole_domain(batches[0][1].shape)
    sums = ErrorSums(ScoreAxes(names, tuple(pollutants), tuple(horizons_h), days, areas))
    first = 0
    for forecasts, truth, wanted in batches:
        own = times[first : first + len(truth)]
        sums.add(make_scored_batch(own, horizons_h, pollutants, forecasts, truth, wanted))
        first += len(truth)
    return sums


def scores_of_batches(*batches: Batch, pollutants: Sequence[str], horizons_h: Sequence[int]) -> xr.Dataset:
    return overall(summed(*batches, pollutants=pollutants, horizons_h=horizons_h).by_day())
