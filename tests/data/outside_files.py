"""Small datasets from outside, for the tests of the reader."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

LAT, LON = np.arange(20.0, 26.0), np.arange(100.0, 108.0)
UNITS = {"pm25": "ug m-3", "co": "ug m-3", "temp": "K", "psfc": "Pa", "rh": "%"}
_LEVEL = {
    "pm25": (20.0, 60.0),
    "co": (100.0, 900.0),
    "temp": (260.0, 300.0),
    "psfc": (7e4, 1e5),
    "rh": (10, 90),
}


def make_hours(
    names: Sequence[str] = ("pm25", "temp"),
    hours: int = 3,
    lat: NDArray[Any] = LAT,
    lon: NDArray[Any] = LON,
    start: str = "2016-01-01",
    seed: int = 0,
) -> xr.Dataset:
    """Return hourly fields (time, lat, lon) with CF attributes."""
    rng = np.random.default_rng(seed)
    times = np.datetime64(start, "ns") + np.arange(hours) * np.timedelta64(1, "h")
    shape = (hours, lat.size, lon.size)
    return xr.Dataset(
        {
            name: (
                ("time", "lat", "lon"),
                rng.uniform(*_LEVEL[name], shape).astype(np.float32),
                {"units": UNITS[name]},
            )
            for name in names
        },
        coords={
            "time": times,
            "lat": ("lat", lat, {"standard_name": "latitude", "units": "degrees_north"}),
            "lon": ("lon", lon, {"standard_name": "longitude", "units": "degrees_east"}),
        },
    )


def make_forecasts(starts: int = 2, leads: Sequence[int] = (12, 24), seed: int = 0) -> xr.Dataset:
    """Return forecasts (init_time, lead_time, lat, lon) of PM2.5."""
    hours = make_hours(("pm25",), hours=starts * len(leads), seed=seed)["pm25"].values
    return xr.Dataset(
        {
            "pm25": (
                ("init_time", "lead_time", "lat", "lon"),
                hours.reshape(starts, len(leads), LAT.size, LON.size),
                {"units": "ug m-3"},
            )
        },
        coords={
            "init_time": np.datetime64("2016-01-01", "ns") + np.arange(starts) * np.timedelta64(1, "D"),
            "lead_time": ("lead_time", list(leads), {"units": "hours"}),
            "lat": LAT,
            "lon": LON,
        },
    )
