"""The layout of a forecast: one CF-1.11 dataset per initial time, with a variable for each pollutant.

The same layout holds the model's forecast and the truth beside it, so that what reads one reads the other.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from aqtopo.variables import VARIABLES

CONVENTIONS = "CF-1.11"

_TIME_ENCODING = {"units": "hours since 1970-01-01", "calendar": "standard", "dtype": "int64"}


def lead_time_dataset(
    values: npt.NDArray[np.float32],
    *,
    init_time: np.datetime64,
    pollutants: Sequence[str],
    horizons_h: Sequence[int],
    lat: npt.NDArray[np.floating[Any]],
    lon: npt.NDArray[np.floating[Any]],
) -> xr.Dataset:
    """Fields by lead time, described as CF asks, without global attributes but `Conventions`.

    Args:
        values: (K, C, H, W) in the units of `aqtopo.variables`, NaN where there is no value.
        init_time: initial time, UTC.
        pollutants: C short names.
        horizons_h: K lead times [h], whole hours.
        lat: (H,) latitudes [degrees north], in the order of the rows.
        lon: (W,) longitudes [degrees east].

    Returns:
        One float32 variable (lead_time, lat, lon) a pollutant; coordinates `init_time` (scalar), `lead_time`
        [h] and `time`, the valid time.
    """
    assert values.shape == (len(horizons_h), len(pollutants), len(lat), len(lon)), "(K, C, H, W)"
    dataset = xr.Dataset(
        {
            name: (("lead_time", "lat", "lon"), values[:, c].astype(np.float32), _describe(name))
            for c, name in enumerate(pollutants)
        },
        coords=_coordinates(init_time, horizons_h, lat, lon),
        attrs={"Conventions": CONVENTIONS},
    )
    for name in ("init_time", "time"):
        dataset[name].encoding.update(_TIME_ENCODING)
    for name in ("lead_time", "lat", "lon"):
        # CF allows no missing value in a coordinate; xarray would declare one for floats.
        dataset[name].encoding["_FillValue"] = None
    return dataset


def _describe(name: str) -> dict[str, str]:
    variable = VARIABLES[name]
    described = {"long_name": variable.long_name, "units": variable.units}
    return described | ({"standard_name": variable.standard_name} if variable.standard_name else {})


def _coordinates(
    init_time: np.datetime64,
    horizons_h: Sequence[int],
    lat: npt.NDArray[np.floating[Any]],
    lon: npt.NDArray[np.floating[Any]],
) -> dict[str, xr.Variable]:
    start = init_time.astype("datetime64[ns]")
    hours = np.asarray(horizons_h, dtype=np.int64)
    return {
        "init_time": xr.Variable(
            (),
            start,
            {"standard_name": "forecast_reference_time", "long_name": "initial time of the forecast (UTC)"},
        ),
        # A number of hours, not a timedelta: it keeps its meaning in readers that know only CF.
        "lead_time": xr.Variable(
            "lead_time",
            hours,
            {
                "standard_name": "forecast_period",
                "long_name": "time since the initial time",
                "units": "hours",
            },
        ),
        "time": xr.Variable(
            "lead_time",
            start + hours.astype("timedelta64[h]"),
            {"standard_name": "time", "long_name": "valid time (UTC)"},
        ),
        "lat": xr.Variable(
            "lat",
            lat,
            {"standard_name": "latitude", "long_name": "latitude", "units": "degrees_north", "axis": "Y"},
        ),
        "lon": xr.Variable(
            "lon",
            lon,
            {"standard_name": "longitude", "long_name": "longitude", "units": "degrees_east", "axis": "X"},
        ),
    }
