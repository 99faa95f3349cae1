"""Baselines that every score is compared with; `points.BASELINES` lists them.

Shapes: B initial time, K horizon, C pollutant, H x W grid, N annual harmonics. Values are in physical units,
NaN where missing.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from aqtopo.config import DataConfig
from aqtopo.data.forcings import DAYS_PER_YEAR, HOURS_PER_DAY
from aqtopo.data.read_check import HourCheck
from aqtopo.data.schema import Hours
from aqtopo.data.store import Report, Store, no_progress, shard_ranges
from aqtopo.distributed.process_group import SINGLE_RANK, RankGroup, shard
from aqtopo.evaluation.linear import Linear, LinearBaseline, Predictors
from aqtopo.evaluation.points import (
    BASELINES,
    CLIMATOLOGY,
    LINEAR,
    LINEAR_SAME,
    PERSISTENCE,
    FloatArray,
    valid_times,
)
from aqtopo.inference.forecast import channel_indices

BaselineForecast = Callable[[Hours], FloatArray]
"""Forecasts (B, K, C, H, W) from initial times (B,)."""


@dataclass(frozen=True)
class Fits:
    """Everything that is fitted to the training years.

    Attributes:
        climatology: mean by hour and season.
        linear: regression on all fields of the store.
        linear_same: regression on the fields that the run reads.
    """

    climatology: "Climatology"
    linear: Linear
    linear_same: Linear


def fit_baselines(
    store: Store,
    data: DataConfig,
    run_dir: Path,
    report: Report = no_progress,
    ranks: RankGroup = SINGLE_RANK,
    climatology: "Climatology | None" = None,
) -> Fits:
    """Fit the baselines to the training years of a run.

    Args:
        store: data store.
        data: the run's variables, targets, horizons and years.
        run_dir: keeps the regressions if the store's folder cannot be written.
        report: receives the progress.
        ranks: processes that share the work.
        climatology: if it is known already.

    Raises:
        ValueError: the training years have too few hours, or a shard cannot be read.
    """
    regressions = [
        LinearBaseline(store, data, predictors, name)
        for name, predictors in (
            (LINEAR, Predictors.of_store(store)),
            (LINEAR_SAME, Predictors.of_run(store, data)),
        )
    ]
    for regression in regressions:
        regression.fit_times()  # raises before the fits, which take minutes
    if climatology is None:
        climatology = fit_climatology(store, data.targets, data.train_years, report, ranks)
    linear, linear_same = (regression.fit_once(run_dir, report, ranks) for regression in regressions)
    return Fits(climatology, linear, linear_same)


def baseline_forecasts(
    store: Store, data: DataConfig, fits: Fits, weather: BaselineForecast | None = None
) -> Mapping[str, BaselineForecast]:
    """Return the forecast of each baseline by name, for the pollutants and horizons of a run.

    `weather` returns the weather to come (B, K, A, H, W) of initial times; None for the store's.
    """

    def regression(fitted: Linear) -> BaselineForecast:
        baseline = LinearBaseline(store, data, fitted.predictors)
        if weather is None or not fitted.predictors.weather:
            return functools.partial(baseline.forecast, fitted)
        return lambda times: baseline.forecast(fitted, times, weather(times))

    forecasts: dict[str, BaselineForecast] = {
        PERSISTENCE: lambda times: persistence(store, data.targets, times, len(data.horizons)),
        CLIMATOLOGY: lambda times: fits.climatology.at(valid_times(times, data.horizons)),
        LINEAR: regression(fits.linear),
        LINEAR_SAME: regression(fits.linear_same),
    }
    assert tuple(forecasts) == tuple(BASELINES), "one forecast for each baseline, in the order of the tables"
    return forecasts


def persistence(
    store: Store, pollutants: Sequence[str], init_times: Hours, horizons: int
) -> NDArray[np.float32]:
    """Return the fields of the initial times, repeated at each horizon: (B, K, C, H, W).

    Raises:
        ValueError: a value is a fill value or impossible, or a shard cannot be read.
    """
    hours, channels = HourCheck(store, pollutants), channel_indices(store, pollutants)
    read = [hours.read_span(index, index + 1)[0, channels] for index in store.locate(init_times).tolist()]
    initial = np.stack(read)
    return np.broadcast_to(initial[:, None], (len(initial), horizons, *initial.shape[1:]))


MAX_HARMONICS = 2

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Climatology:
    """Hourly climatology with annual harmonics, cell by cell.

    At every hour of the day (UTC) a constant and annual harmonics are fitted to a cell's values by least
    squares. Averages by calendar day would be noisy: they have one value per year, four in the real data.
    There are as many harmonics as training years, at most two: fitted to a single year, the second one
    increased every RMSE on simulated data. If the training years miss whole seasons, there are fewer, or
    none.

    Attributes:
        mean: (24, C, H, W) over the year; NaN in cells without a value at that hour.
        cycle: (2N, 24, C, H, W), coefficients of `annual_waves`.
        years: the calendar years of the fit.
    """

    mean: NDArray[np.float32]
    cycle: NDArray[np.float32]
    years: tuple[int, ...]

    @property
    def harmonics(self) -> int:
        """Number of harmonics N; 0 if the climatology is constant over the year."""
        return len(self.cycle) // 2

    @property
    def described(self) -> str:
        """Description for readers of the scores."""
        by_year = (
            f" and {self.harmonics} annual harmonic(s)" if self.harmonics else ", the same all year round"
        )
        return f"mean by hour of the day (UTC){by_year}, fitted over {', '.join(map(str, self.years))}"

    def at(self, times: Hours) -> NDArray[np.float32]:
        """Return the fields (..., C, H, W) at valid times (...)."""
        hours, waves = hour_of_day(times), annual_waves(times, self.harmonics)
        values: NDArray[np.float32] = self.mean[hours]
        for wave, part in enumerate(self.cycle):
            values += waves[..., wave, None, None, None].astype(np.float32) * part[hours]
        return values


def hour_of_day(times: Hours) -> NDArray[np.int64]:
    """Return the hour of the day, 0 to 23 UTC."""
    return times.astype("datetime64[h]").astype(np.int64) % HOURS_PER_DAY


def annual_waves(times: Hours, harmonics: int) -> Values:
    """Return cosine and sine of each annual harmonic, (..., 2N), at times (...)."""
    turns = (times.astype("datetime64[h]").astype(np.int64) / HOURS_PER_DAY / DAYS_PER_YEAR)[..., None]
    angles = 2.0 * np.pi * turns * np.arange(1, harmonics + 1)
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1).reshape(*times.shape, 2 * harmonics)


def fit_climatology(
    store: Store,
    pollutants: Sequence[str],
    years: Sequence[int],
    report: Report = no_progress,
    ranks: RankGroup = SINGLE_RANK,
) -> Climatology:
    """Fit each pollutant over all hours of the calendar years.

    The processes share one pass over the shards (days). The float64 sums take 0.4 GB on the grid of 128 x
    256. For the annual cycle, a value that is missing in some cells counts as the mean of its hour, so that
    one small matrix serves all cells; hours that are missing in all cells are skipped.

    Raises:
        ValueError: the store has no hour in the years, a value is a fill value or impossible, or a shard
            cannot be read.
    """
    ranges = list(shard_ranges(store, years))
    if not ranges:
        raise ValueError(
            f"the store {store.path} has no hour in the training years {', '.join(map(str, years))}, so "
            "no climatology can be fitted. Score the run on the store that it was trained on."
        )
    times = np.concatenate([store.times[first:last] for first, last in ranges])
    sums = _Sums(_harmonics_for(times), (len(pollutants), len(store.lat), len(store.lon)))
    own, channels = shard(ranges, ranks), channel_indices(store, pollutants)
    checked, done, all_hours = HourCheck(store, pollutants), 0, sum(last - first for first, last in own)
    report("hours of climatology", done, all_hours)
    for first, last in own:
        sums.add(store.times[first:last], checked.read_span(first, last)[:, channels])
        done += last - first
        report("hours of climatology", done, all_hours)
    mean, cycle = sums.added_up(ranks).fit(times)
    return Climatology(mean.astype(np.float32), cycle.astype(np.float32), tuple(sorted(set(years))))


def _harmonics_for(times: Hours) -> int:
    """Return the number of years, limited so that a quarter wave exceeds the longest gap of the year."""
    years = np.unique(times.astype("datetime64[Y]")).size
    days = np.unique(times.astype("datetime64[D]") - times.astype("datetime64[Y]")).astype(np.int64)
    longest_gap = np.diff(days, append=days[0] + 365).max()
    return int(min(years, MAX_HARMONICS, DAYS_PER_YEAR / 4.0 // longest_gap))


class _Sums:
    """Sums by hour of the day and cell for the fit: values, waves and their products."""

    def __init__(self, harmonics: int, shape: tuple[int, ...]) -> None:
        self._harmonics = harmonics
        self._count = np.zeros((HOURS_PER_DAY, *shape))
        self._values = np.zeros_like(self._count)
        self._waves = np.zeros((2 * harmonics, *self._count.shape))
        self._products = np.zeros_like(self._waves)

    def add(self, times: Hours, fields: NDArray[np.float32]) -> None:
        """Add fields (n, C, H, W) at times (n,)."""
        waves = annual_waves(times, self._harmonics)
        for hour, wave, field in zip(hour_of_day(times), waves, fields, strict=True):
            known = np.isfinite(field)
            values = np.where(known, field, 0.0).astype(np.float64)
            self._count[hour] += known
            self._values[hour] += values
            for sums, products, height in zip(self._waves, self._products, wave, strict=True):
                sums[hour] += height * known
                products[hour] += height * values

    def added_up(self, ranks: RankGroup) -> "_Sums":
        """Sum over all processes."""
        for array in (self._count, self._values, self._waves, self._products):
            array[...] = ranks.all_reduce_sum(torch.from_numpy(array)).numpy()
        return self

    def fit(self, times: Hours) -> tuple[Values, Values]:
        """Return annual means (24, C, H, W) and cycles (2N, 24, C, H, W) from the sums over `times`."""
        known = np.where(self._count > 0, self._count, np.nan)
        mean = self._values / known
        covariances = self._products - mean * self._waves
        waves, hours = annual_waves(times, self._harmonics), hour_of_day(times)
        cycle = np.zeros_like(self._waves)
        for hour in np.unique(hours) if self._harmonics else ():
            own = waves[hours == hour]
            deviations = own - own.mean(axis=0)
            inverse = np.linalg.pinv(deviations.T @ deviations)
            cycle[:, hour] = np.tensordot(inverse, covariances[:, hour], axes=1)
            # Mean over the whole year, in which the waves have mean zero, instead of over the hours present.
            mean[hour] -= np.tensordot(own.mean(axis=0), cycle[:, hour], axes=1)
        return mean, cycle
