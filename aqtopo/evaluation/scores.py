"""Scores from error sums, whatever they were summed over."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr

from aqtopo.evaluation.areas import WHOLE
from aqtopo.evaluation.cases import CLIMATOLOGY, MODEL

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
