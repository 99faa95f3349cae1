"""Error sums of forecasts, and the scores computed from them.

Only float64 sums are kept, by initial day and by hour of the valid time for every area (9 MB for a year with
nine areas), so the processes share the work and their sums add up. Every cell has the same weight, as in the
loss.

Shapes: F forecast, B initial time, K horizon, C pollutant, A area, H x W grid.
The dimension is called `forecast`, not `method`, because xarray's `sel` has an argument of that name.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from aqtopo.data.forcings import HOURS_PER_DAY
from aqtopo.distributed.process_group import RankGroup
from aqtopo.evaluation.baselines import hour_of_day
from aqtopo.evaluation.points import CLIMATOLOGY, MODEL, WHOLE, Areas, BoolArray, FloatArray, ScoredBatch

Values = NDArray[np.float64]

ERRORS = ("squared", "absolute", "signed", "anomaly_squared")
"""Sums of every forecast."""
_COUNTS = ("count", "left_out")


@dataclass(frozen=True, eq=False)
class ScoreAxes:
    """Axes of the sums: forecasts (the model first), pollutants, lead times [h], initial days (D,), areas."""

    forecasts: tuple[str, ...]
    pollutants: tuple[str, ...]
    horizons_h: tuple[int, ...]
    days: NDArray[np.datetime64]
    areas: Areas


class ErrorSums:
    """Sums of forecast minus truth over scored points, in bins of initial days and valid hours."""

    def __init__(self, axes: ScoreAxes) -> None:
        self._axes = axes
        self._by_day = self._empty(axes.days.size)
        self._by_hour = self._empty(HOURS_PER_DAY)

    def _empty(self, bins: int) -> dict[str, Values]:
        axes = self._axes
        per_pair = (len(axes.horizons_h), len(axes.pollutants), len(axes.areas.names))
        per_forecast = (bins, len(axes.forecasts), *per_pair)
        return {name: np.zeros(per_forecast) for name in ERRORS} | {
            name: np.zeros((bins, *per_pair)) for name in ("weight", *_COUNTS)
        }

    def add(self, batch: ScoredBatch) -> None:
        """Add a batch."""
        summed = self._summed(batch)
        days = np.searchsorted(self._axes.days, batch.init_times.astype("datetime64[D]"))
        hours = hour_of_day(batch.valid_times)
        for name, values in summed.items():
            np.add.at(self._by_day[name], days, values)
            for k in range(hours.shape[1]):
                # Horizons are on the third axis from the end in all sums.
                np.add.at(self._by_hour[name][..., k, :, :], hours[:, k], values[..., k, :, :])

    def _summed(self, batch: ScoredBatch) -> dict[str, Values]:
        """Return sums over the cells of every area: errors (B, F, K, C, A), counts (B, K, C, A)."""
        parts: dict[str, list[Values]] = {name: [] for name in ERRORS}
        areas, climatology = self._axes.areas, batch.forecasts[CLIMATOLOGY]
        for name in self._axes.forecasts:
            for term, values in error_terms(batch.forecasts[name], batch.truth, climatology, batch.scored):
                parts[term].append(areas.weighted(values))
        summed = {name: np.stack(by_forecast, axis=1) for name, by_forecast in parts.items()}
        return summed | {
            "weight": areas.weighted(batch.scored),
            "count": areas.counts(batch.scored),
            "left_out": areas.counts(batch.left_out),
        }

    def all_reduce(self, ranks: RankGroup) -> None:
        """Sum over all processes."""
        all_reduce((*self._by_day.values(), *self._by_hour.values()), ranks)

    def by_day(self) -> xr.Dataset:
        """Return the sums by initial day (UTC).

        Returns:
            `squared`, `absolute`, `signed` (errors) and `anomaly_squared` (forecast minus climatology), each
            (forecast, day, area, pollutant, horizon) in powers of the pollutant's units, with the weights of
            the cells; `weight`, the sum of the weights of the scored points, `count`, their number, and
            `left_out`, points with a truth where a baseline has no value, each (day, area, pollutant,
            horizon).
        """
        return self._dataset(self._by_day, "day", self._axes.days.astype("datetime64[ns]"))

    def by_hour(self) -> xr.Dataset:
        """Return the sums of `by_day` by hour of the valid time, 0 to 23 UTC, along `hour`."""
        return self._dataset(self._by_hour, "hour", np.arange(HOURS_PER_DAY))

    def tables(self) -> Mapping[str, xr.Dataset]:
        """Return both tables by name."""
        return {"by_day": self.by_day(), "by_hour": self.by_hour()}

    def _dataset(self, sums: dict[str, Values], bin_name: str, bins: NDArray[np.generic]) -> xr.Dataset:
        axes, per_pair = self._axes, ("horizon", "pollutant", "area")
        return xr.Dataset(
            {name: ((bin_name, "forecast", *per_pair), sums[name]) for name in ERRORS}
            | {"weight": ((bin_name, *per_pair), sums["weight"])}
            | {name: ((bin_name, *per_pair), sums[name].astype(np.int64)) for name in _COUNTS},
            coords={
                "forecast": list(axes.forecasts),
                bin_name: bins,
                "area": list(axes.areas.names),
                "area_kind": ("area", list(axes.areas.kinds)),
                "pollutant": list(axes.pollutants),
                "horizon": ("horizon", list(axes.horizons_h), {"units": "hours"}),
            },
        ).transpose("forecast", bin_name, "area", "pollutant", "horizon")


def all_reduce(arrays: Iterable[Values], ranks: RankGroup) -> None:
    """Replace arrays by their sums over all processes."""
    for array in arrays:
        array[...] = ranks.all_reduce_sum(torch.from_numpy(array)).numpy()


def error_terms(
    forecast: FloatArray, truth: FloatArray, climatology: FloatArray, scored: BoolArray
) -> Iterator[tuple[str, Values]]:
    """Yield the names in `ERRORS` with arrays like `truth`, 0 where not scored."""
    error = _difference(forecast, truth, scored)
    yield "signed", error
    yield "absolute", np.abs(error)
    yield "squared", np.square(error)
    yield "anomaly_squared", np.square(_difference(forecast, climatology, scored))


def _difference(one: FloatArray, other: FloatArray, where: BoolArray) -> Values:
    """Return one minus the other in float64, 0 outside `where`."""
    difference = np.zeros(where.shape)
    np.subtract(one, other, out=difference, where=where, dtype=np.float64)
    return difference


def scores_from_sums(sums: xr.Dataset) -> xr.Dataset:
    """Compute scores in physical units, NaN without a scored point.

    Args:
        sums: from `ErrorSums.by_day` or `by_hour`, or sums of it over days, hours or areas.

    Returns:
        `rmse`, `mae`, `bias` and `acc` (forecast, ...); `skill` (reference, ...), see `skill_against`;
        `count` and `left_out` (...). The dimensions ... are the others of `sums`, pollutant and horizon last.
    """
    counted = sums["weight"].where(sums["count"] > 0)
    scores = xr.Dataset(
        {
            "rmse": np.sqrt(sums["squared"] / counted),
            "mae": sums["absolute"] / counted,
            "bias": sums["signed"] / counted,
            "acc": anomaly_correlation(sums),
            "count": sums["count"],
            "left_out": sums["left_out"],
        }
    )
    scores["skill"] = skill_against(scores["rmse"])
    return scores.transpose("forecast", "reference", ..., "pollutant", "horizon")


def anomaly_correlation(sums: xr.Dataset) -> xr.DataArray:
    """Uncentred correlation of forecast and true anomalies from climatology, over all points pooled.

    sum(f' o') / sqrt(sum(f'^2) sum(o'^2)), with f' = forecast - climatology and o' = truth - climatology.
    f' - o' is the forecast's error and -o' that of climatology, so the product follows from sums of squares:
    sum(f' o') = (sum(f'^2) + sum(o'^2) - sum(error^2)) / 2.

    Returns:
        (forecast, ...) in [-1, 1]; NaN without an anomaly, as for climatology itself.
    """
    true, forecast = sums["squared"].sel(forecast=CLIMATOLOGY, drop=True), sums["anomaly_squared"]
    product = (forecast + true - sums["squared"]) / 2.0
    return product / np.sqrt((forecast * true).where(forecast * true > 0.0))


def skill_against(rmse: xr.DataArray) -> xr.DataArray:
    """Compute the skill 1 - rmse / rmse of the reference: 1 is perfect, 0 as good as the reference.

    Returns:
        (reference, ...) from rmse (forecast, ...); NaN without a scored point or an error of the reference.
    """
    model = rmse.sel(forecast=MODEL, drop=True)
    reference = rmse.drop_sel(forecast=MODEL).rename(forecast="reference")
    return (1.0 - model / reference.where(reference > 0.0)).transpose("reference", ...)


def overall(by_day: xr.Dataset) -> xr.Dataset:
    """Compute scores over all days and the whole domain, (forecast, pollutant, horizon)."""
    return scores_from_sums(by_day.sel(area=WHOLE).drop_vars(("area", "area_kind")).sum("day"))


def stratified_scores(by_day: xr.Dataset, by_hour: xr.Dataset) -> dict[str, xr.Dataset]:
    """Compute scores by stratum.

    Returns:
        By `season` of the initial day (DJF, MAM, JJA, SON), by `hour` of the valid time (UTC), by `area`;
        the first two over the whole domain. Seasons and hours without a forecast are absent.
    """
    whole = by_day.sel(area=WHOLE).drop_vars(("area", "area_kind"))
    seasons = whole.groupby(whole["day"].dt.season).sum("day")
    order = [name for name in ("DJF", "MAM", "JJA", "SON") if name in seasons["season"].values]
    hours = by_hour.sel(area=WHOLE).drop_vars(("area", "area_kind"))
    hours = hours.isel(hour=(hours["count"].sum(("pollutant", "horizon")) > 0).values)
    return {
        "season": scores_from_sums(seasons.sel(season=order)),
        "hour": scores_from_sums(hours),
        "area": scores_from_sums(by_day.sum("day")),
    }


def tidy_scores(scores: xr.Dataset) -> xr.Dataset:
    """Return the scores of `overall` as one variable, whose `to_dataframe()` has a row for each score.

    Returns:
        `value` (pollutant, lead_time, score, forecast), in the pollutant's units except for `acc`; with
        `units` of the pollutant and `count`, the number of scored points, as coordinates.
    """
    names = ["rmse", "mae", "bias", "acc"]
    value = scores[names].to_array("score", "value").rename(horizon="lead_time")
    value = value.transpose("pollutant", "lead_time", "score", "forecast")
    tidy = value.assign_attrs(long_name="score", units="").to_dataset(name="value").assign_attrs(scores.attrs)
    hours = ("lead_time", tidy["lead_time"].values, {"long_name": "lead time", "units": "hours"})
    return tidy.assign_coords(
        lead_time=hours,
        units=("pollutant", scores["units"].values),
        count=scores["count"].rename(horizon="lead_time").transpose("pollutant", "lead_time").variable,
    )


@dataclass(frozen=True)
class Wins:
    """Number of scored pollutant-horizon pairs, and of pairs in which the model has the lower RMSE."""

    pairs: int
    over: Mapping[str, int]
    over_all: int


def squared_errors(scores: xr.Dataset) -> dict[str, float]:
    """Return the mean squared error of each forecast over all pairs, in the store's standard deviations.

    A pair counts if all forecasts have a score. Empty if the scores do not hold the standard deviations.
    """
    deviations = scores.attrs.get("standard_deviations")
    if deviations is None:
        return {}
    std = xr.DataArray([deviations[str(name)] for name in scores["pollutant"].values], dims="pollutant")
    squared = (scores["rmse"] / std) ** 2
    mean = squared.where(squared.notnull().all("forecast")).mean(("pollutant", "horizon"))
    return {str(name): float(mean.sel(forecast=name)) for name in mean["forecast"].values}


def count_wins(scores: xr.Dataset) -> Wins:
    """Count the pairs in which the model is better than the references, from the scores of `overall`."""
    rmse = scores["rmse"]
    better = rmse.sel(forecast=MODEL, drop=True) < rmse.drop_sel(forecast=MODEL)
    return Wins(
        pairs=int((scores["count"] > 0).sum()),
        over={str(name): int(better.sel(forecast=name).sum()) for name in better["forecast"].values},
        over_all=int(better.all("forecast").sum()),
    )
