"""Simulated weather forecasts: the weather of a store with an error that grows with lead time.

The error of a forecast is a share of the difference to the weather some days away, at the same hours of the
day. So it has the patterns of weather, and its variables fit each other.
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from aqtopo.data.samples import usable_times
from aqtopo.data.schema import Hours
from aqtopo.data.store import Report, Store, no_progress
from aqtopo.inference.forecast import read_hours
from aqtopo.inference.forecast_file import lead_time_dataset
from aqtopo.variables import DYNAMIC_VARIABLES, TARGET_VARIABLES

WEATHER = tuple(name for name in DYNAMIC_VARIABLES if name not in TARGET_VARIABLES)
"""Variables of the forecasts."""

MAX_DAYS = 15
"""Largest number of days to the other weather."""

GROWTH_H = 120.0
"""Lead time [h] after which the share has grown to 1 - 1/e."""


def error_share(leads_h: Sequence[int]) -> NDArray[np.float32]:
    """Return the share (K,) of the other weather at lead times (K,) [h]."""
    share: NDArray[np.float32] = (1.0 - np.exp(-np.array(leads_h) / GROWTH_H)).astype(np.float32)
    return share


def weather_forecasts(
    store: Store,
    years: Sequence[int],
    every_hours: int,
    leads_h: Sequence[int],
    seed: int,
    report: Report = no_progress,
) -> xr.Dataset:
    """Return forecasts of the weather from initial times of some years, in the layout of `aqtopo forecast`.

    An error depends on the seed and the initial time, but not on the other initial times.

    Args:
        store: the true weather.
        years: calendar years of the initial times.
        every_hours: their interval, counted within each year.
        leads_h: K lead times [h], ascending.
        seed: of the errors.
        report: receives the progress.

    Raises:
        ValueError: there is no initial time, or no other weather for one.
    """
    times = usable_times(store.times, years, leads_h, every_hours)
    if not times.size:
        raise ValueError(
            f"{store.path} has no hour of the years {', '.join(map(str, years))} with weather "
            f"{', '.join(map(str, leads_h))} h later in the same year. Choose years that the store holds "
            "(`aqtopo data info` lists them)."
        )
    forecasts = []
    for done, init_time in enumerate(times):
        report("weather forecasts", done, times.size)
        forecasts.append(_forecast(store, init_time, leads_h, seed))
    report("weather forecasts", times.size, times.size)
    joined = xr.concat(forecasts, "init_time", coords="different", compat="equals", combine_attrs="override")
    return joined.assign_attrs(
        title="Simulated weather forecasts",
        source=f"{store.source}; with an error that grows with lead time",
        simulated="yes",
        seed=seed,
    )


def _forecast(store: Store, init_time: np.datetime64, leads_h: Sequence[int], seed: int) -> xr.Dataset:
    valid = init_time + np.array(leads_h, dtype="timedelta64[h]")
    truth = read_hours(store, WEATHER, valid)
    other = read_hours(store, WEATHER, valid + _shift(store, init_time, valid, seed))
    values = truth + error_share(leads_h)[:, None, None, None] * (other - truth)
    return lead_time_dataset(
        values,
        init_time=init_time,
        pollutants=[store.variables[name] for name in WEATHER],
        horizons_h=leads_h,
        lat=store.lat,
        lon=store.lon,
    )


def _shift(store: Store, init_time: np.datetime64, valid: Hours, seed: int) -> np.timedelta64:
    """Return a random number of whole days, not 0, after which the store has all valid hours (K,)."""
    days = np.array([day for day in range(-MAX_DAYS, MAX_DAYS + 1) if day])
    stored = store.holds(valid[None, :] + days[:, None].astype("timedelta64[D]")).all(1)
    if not stored.any():
        raise ValueError(
            f"{store.path} has no other weather within {MAX_DAYS} days of {init_time}. Give a store of at "
            "least several days."
        )
    start = int(init_time.astype("datetime64[h]").astype(np.int64))
    return np.timedelta64(int(np.random.default_rng([seed, start]).choice(days[stored])), "D")
