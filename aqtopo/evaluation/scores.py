"""Error sums of forecasts, and the scores computed from them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from aqtopo.checkpoint.ranks import Ranks
from aqtopo.evaluation.baselines import HOURS_A_DAY, hour_of_day
from aqtopo.evaluation.points import CLIMATOLOGY, MODEL, WHOLE, Areas, BoolArray, Cases, FloatArray

Values = NDArray[np.float64]

ERRORS = ("squared", "absolute", "signed", "anomaly_squared")
"""What is summed for every forecast."""
_COUNTS = ("count", "left_out")


@dataclass(frozen=True, eq=False)
class Axes:
    """What sums are kept for.

    Attributes:
        forecasts: names, the model first.
        pollutants: short names.
        horizons_h: lead times [h].
        days: (D,) initial days, ascending.
        areas: where.
    """

    forecasts: tuple[str, ...]
    pollutants: tuple[str, ...]
    horizons_h: tuple[int, ...]
    days: NDArray[np.datetime64]
    areas: Areas


class ErrorSums:
    """Sums of forecast minus truth, over the points of `Cases`, in bins of initial days and valid hours."""

    def __init__(self, axes: Axes) -> None:
        self._axes = axes
        self._weights = axes.areas.cells.reshape(len(axes.areas.names), -1).T.astype(np.float64)
        self._by_day = self._empty(axes.days.size)
        self._by_hour = self._empty(HOURS_A_DAY)

    def _empty(self, bins: int) -> dict[str, Values]:
        axes = self._axes
        per_pair = (len(axes.horizons_h), len(axes.pollutants), len(axes.areas.names))
        per_forecast = (bins, len(axes.forecasts), *per_pair)
        return {name: np.zeros(per_forecast) for name in ERRORS} | {
            name: np.zeros((bins, *per_pair)) for name in _COUNTS
        }

    def add(self, cases: Cases) -> None:
        """Add a batch."""
        summed = self._summed(cases)
        days = np.searchsorted(self._axes.days, cases.init_times.astype("datetime64[D]"))
        hours = hour_of_day(cases.valid_times)
        for name, values in summed.items():
            np.add.at(self._by_day[name], days, values)
            for k in range(hours.shape[1]):
                # Horizons lie on the third axis from the end in all sums.
                np.add.at(self._by_hour[name][..., k, :, :], hours[:, k], values[..., k, :, :])

    def _summed(self, cases: Cases) -> dict[str, Values]:
        """Sums over the cells of every area: errors (B, F, K, C, A), counts (B, K, C, A)."""
        parts: dict[str, list[Values]] = {name: [] for name in ERRORS}
        usual = cases.forecasts[CLIMATOLOGY]
        for name in self._axes.forecasts:
            for term, values in error_terms(cases.forecasts[name], cases.truth, usual, cases.scored):
                parts[term].append(self._over_areas(values))
        summed = {name: np.stack(by_forecast, axis=1) for name, by_forecast in parts.items()}
        return summed | {
            "count": self._over_areas(cases.scored.astype(np.float64)),
            "left_out": self._over_areas(cases.left_out.astype(np.float64)),
        }

    def _over_areas(self, values: Values) -> Values:
        """(B, K, C, H, W) to (B, K, C, A)."""
        sums: Values = values.reshape(*values.shape[:3], -1) @ self._weights
        return sums

    def add_up(self, ranks: Ranks) -> None:
        """Add the other processes' sums to these."""
        add_up((*self._by_day.values(), *self._by_hour.values()), ranks)

    def by_day(self) -> xr.Dataset:
        """Sums by initial day (UTC).

        Returns:
            `squared`, `absolute`, `signed` (errors) and `anomaly_squared` (forecast minus climatology), each
            (forecast, day, area, pollutant, horizon) in powers of the pollutant's units; `count`, the points
            summed over, the same for every forecast, and `left_out`, points with a truth where a reference
            has no value, each (day, area, pollutant, horizon).
        """
        return self._dataset(self._by_day, "day", self._axes.days.astype("datetime64[ns]"))

    def by_hour(self) -> xr.Dataset:
        """As `by_day`, with the hour of the valid time, 0 to 23 UTC, along `hour` instead of `day`."""
        return self._dataset(self._by_hour, "hour", np.arange(HOURS_A_DAY))

    def tables(self) -> Mapping[str, xr.Dataset]:
        """Both of them by name."""
        return {"by_day": self.by_day(), "by_hour": self.by_hour()}

    def _dataset(self, sums: dict[str, Values], bin_name: str, bins: NDArray[np.generic]) -> xr.Dataset:
        axes, per_pair = self._axes, ("horizon", "pollutant", "area")
        return xr.Dataset(
            {name: ((bin_name, "forecast", *per_pair), sums[name]) for name in ERRORS}
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


def add_up(arrays: Iterable[Values], ranks: Ranks) -> None:
    """Replace arrays by their sums over all processes."""
    for array in arrays:
        array[...] = ranks.add_up(torch.from_numpy(array)).numpy()


def error_terms(
    forecast: FloatArray, truth: FloatArray, climatology: FloatArray, scored: BoolArray
) -> Iterator[tuple[str, Values]]:
    """What is summed of a forecast: arrays like `truth`, 0 where not scored, with their names in `ERRORS`."""
    error = _difference(forecast, truth, scored)
    yield "signed", error
    yield "absolute", np.abs(error)
    yield "squared", np.square(error)
    yield "anomaly_squared", np.square(_difference(forecast, climatology, scored))


def _difference(one: FloatArray, other: FloatArray, where: BoolArray) -> Values:
    """One minus the other in float64, 0 where it is not asked for."""
    difference = np.zeros(where.shape)
    np.subtract(one, other, out=difference, where=where, dtype=np.float64)
    return difference


STRATA = ("season", "hour", "area")
"""What scores are told apart by, beside pollutant and horizon."""


def scores_of(sums: xr.Dataset) -> xr.Dataset:
    """Scores in physical units, NaN where nothing was counted.

    Args:
        sums: what `ErrorSums.by_day` or `by_hour` gives, or sums of it over days, hours or areas.

    Returns:
        `rmse`, `mae`, `bias` and `acc` (forecast, ...); `skill` (reference, ...), see `skill_against`;
        `count` and `left_out` (...), where ... are the other dimensions of `sums`, last pollutant and
        horizon.
    """
    counted = sums["count"].where(sums["count"] > 0)
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
    """Correlation of forecast and true anomalies from climatology, over all points summed over.

    Uncentred and pooled: sum(f' o') / sqrt(sum(f'^2) sum(o'^2)), with f' = forecast - climatology and o' =
    truth - climatology. Since f' - o' is the error, and o' that of climatology with its sign turned, the
    product follows from the squares that are summed anyhow: sum(f' o') = (sum(f'^2) + sum(o'^2) -
    sum(error^2)) / 2.

    Returns:
        (forecast, ...) in [-1, 1]; NaN where there is no anomaly, as for climatology itself.
    """
    true, forecast = sums["squared"].sel(forecast=CLIMATOLOGY, drop=True), sums["anomaly_squared"]
    product = (forecast + true - sums["squared"]) / 2.0
    return product / np.sqrt((forecast * true).where(forecast * true > 0.0))


def skill_against(rmse: xr.DataArray) -> xr.DataArray:
    """Skill 1 - rmse / rmse of the reference: 1 is perfect, 0 as good as the reference, below 0 worse.

    Args:
        rmse: (forecast, ...) with the model and the references.

    Returns:
        (reference, ...), NaN where nothing was counted or the reference makes no error at all.
    """
    model = rmse.sel(forecast=MODEL, drop=True)
    reference = rmse.drop_sel(forecast=MODEL).rename(forecast="reference")
    return (1.0 - model / reference.where(reference > 0.0)).transpose("reference", ...)


def overall(by_day: xr.Dataset) -> xr.Dataset:
    """Scores over all days and the whole domain, (forecast, pollutant, horizon)."""
    return scores_of(by_day.sel(area=WHOLE).drop_vars(("area", "area_kind")).sum("day"))


def stratified(by_day: xr.Dataset, by_hour: xr.Dataset) -> dict[str, xr.Dataset]:
    """Scores over all of the data by each of `STRATA`.

    Returns:
        By `season` of the initial day (DJF, MAM, JJA, SON), by `hour` of the valid time (UTC), by `area`;
        the first two over the whole domain. Seasons and hours without a forecast are not there.
    """
    whole = by_day.sel(area=WHOLE).drop_vars(("area", "area_kind"))
    seasons = whole.groupby(whole["day"].dt.season).sum("day")
    order = [name for name in ("DJF", "MAM", "JJA", "SON") if name in seasons["season"].values]
    hours = by_hour.sel(area=WHOLE).drop_vars(("area", "area_kind"))
    hours = hours.isel(hour=(hours["count"].sum(("pollutant", "horizon")) > 0).values)
    return {
        "season": scores_of(seasons.sel(season=order)),
        "hour": scores_of(hours),
        "area": scores_of(by_day.sum("day")),
    }


@dataclass(frozen=True)
class Wins:
    """In how many pollutant-horizon pairs the model has the lower RMSE.

    Attributes:
        pairs: pairs in which anything was counted.
        over: by reference, the pairs in which the model is strictly better than it.
        over_all: pairs in which it is better than every reference.
    """

    pairs: int
    over: Mapping[str, int]
    over_all: int


def count_wins(scores: xr.Dataset) -> Wins:
    """Count the pairs in which the model beats the references, from what `overall` gives."""
    rmse = scores["rmse"]
    better = rmse.sel(forecast=MODEL, drop=True) < rmse.drop_sel(forecast=MODEL)
    return Wins(
        pairs=int((scores["count"] > 0).sum()),
        over={str(name): int(better.sel(forecast=name).sum()) for name in better["forecast"].values},
        over_all=int(better.all("forecast").sum()),
    )
