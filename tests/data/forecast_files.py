"""Forecasts without error, for the tests of readers of forecasts."""

from collections.abc import Iterable, Sequence

import numpy as np
import xarray as xr

from aqtopo.data import Store
from aqtopo.inference.forecast import read_hours
from aqtopo.inference.forecast_file import lead_time_dataset
from aqtopo.variables import HORIZONS_H


def perfect_forecasts(store: Store, names: Sequence[str], init_times: Iterable[np.datetime64]) -> xr.Dataset:
    """Return the store's own later fields in the layout that `aqtopo forecast` writes."""
    made = [
        lead_time_dataset(
            read_hours(store, names, init + np.array(HORIZONS_H, "timedelta64[h]")),
            init_time=init,
            pollutants=[store.variables[name] for name in names],
            horizons_h=HORIZONS_H,
            lat=store.lat,
            lon=store.lon,
        )
        for init in init_times
    ]
    return xr.concat(made, "init_time", coords="different", compat="equals")
