"""Forecasts of another model, read from the layout that `aqtopo forecast` writes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pandas.errors import InvalidIndexError

from aqtopo.data.schema import Hours
from aqtopo.data.store import Store
from aqtopo.evaluation.points import FORECASTS
from aqtopo.inference.forecast_file import SUFFIXES
from aqtopo.variables import VARIABLES

GRID_TOLERANCE_DEG = 1e-4
"""Float32 coordinates differ by 1e-5 degrees."""

DIMENSIONS = ("init_time", "lead_time", "lat", "lon")


@dataclass(frozen=True, eq=False)
class OtherForecasts:
    """Forecasts of another model on the same grid, loaded on demand.

    Attributes:
        name: file name without its suffix.
        fields: pollutants (init_time, lead_time, lat, lon), cells in the store's order.
        init_times: (T,) UTC, in the order of `fields`.
    """

    name: str
    fields: xr.Dataset
    init_times: Hours

    def at(self, init_times: Hours) -> NDArray[np.float32]:
        """Return the forecasts (B, K, C, H, W) from `init_times` (B,), all of which must exist."""
        rows = [int(np.flatnonzero(self.init_times == time)[0]) for time in init_times]
        chosen = self.fields.isel(init_time=rows).load()
        stacked = np.stack([chosen[name].values for name in chosen.data_vars], axis=2)
        return stacked.astype(np.float32)


def open_forecasts(
    path: Path, store: Store, pollutants: Sequence[str], horizons_h: Sequence[int]
) -> OtherForecasts:
    """Open another model's forecasts and check that they can be compared.

    Args:
        path: NetCDF or zarr. `init_time` is a scalar, as `aqtopo forecast` writes it, or a dimension.
        store: the grid of the scores.
        pollutants: C short names to score.
        horizons_h: K lead times to score.

    Raises:
        ValueError: the file cannot be read, or pollutants, units, grid or lead times differ.
    """
    try:
        dataset = _open(path)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"the forecasts {path} cannot be read: {_why(path, error)}. Name a .nc or .zarr file."
        ) from error
    _check_variables(path, dataset, pollutants)
    fields = dataset[list(pollutants)]
    if "init_time" not in fields.dims:
        fields = fields.expand_dims("init_time")
    _check_dimensions(path, fields)
    leads = _hours(path, fields)
    absent = [hours for hours in horizons_h if hours not in leads]
    if absent:
        _fail(path, f"has no lead time of {absent[0]} h (it has {', '.join(map(str, leads))} h)")
    fields = fields.isel(lead_time=[leads.index(hours) for hours in horizons_h])
    try:
        # By coordinate, so that an axis may run the other way.
        fields = fields.sel(lat=store.lat, method="nearest", tolerance=GRID_TOLERANCE_DEG)
        fields = fields.sel(lon=store.lon, method="nearest", tolerance=GRID_TOLERANCE_DEG)
    except KeyError:
        _fail(path, f"is on another grid than {store.path}; interpolate it to that grid first")
    except (ValueError, InvalidIndexError) as error:
        _fail(path, f"has an axis without unique, ordered values ({error})")
    fields = fields.transpose(*DIMENSIONS)
    return OtherForecasts(_name(path), fields, _init_times(path, fields))


def _open(path: Path) -> xr.Dataset:
    # Lead times stay numbers of hours. xarray warns of a store without consolidated metadata.
    zarr: dict[str, Any] = {"engine": "zarr", "consolidated": False} if path.suffix == ".zarr" else {}
    opened: xr.Dataset = xr.open_dataset(path, decode_timedelta=False, **zarr)
    return opened


def _why(path: Path, error: Exception) -> str:
    """Return the cause in one sentence; xarray's own message lists all its engines."""
    if not path.exists():
        return "there is no such file"
    return str(error) if path.suffix in SUFFIXES else f"its name does not end in {' or '.join(SUFFIXES)}"


def _check_variables(path: Path, dataset: xr.Dataset, pollutants: Sequence[str]) -> None:
    for axis in DIMENSIONS:
        if axis not in dataset.coords:
            _fail(path, f"has no coordinate {axis}")
    absent = [name for name in pollutants if name not in dataset]
    if absent:
        _fail(path, f"has no {', '.join(absent)}")
    for name in pollutants:
        units = dataset[name].attrs.get("units")
        if units != VARIABLES[name].units:
            _fail(path, f"has {name} in {units!r}, and the run in {VARIABLES[name].units!r}")


def _check_dimensions(path: Path, fields: xr.Dataset) -> None:
    for axis in DIMENSIONS:
        if axis not in fields.dims:
            _fail(path, f"has no dimension {axis}")
    more = [str(name) for name in fields.dims if name not in DIMENSIONS]
    if more:
        _fail(path, f"also has the dimension {', '.join(more)}; select one value or take a mean")


def _init_times(path: Path, fields: xr.Dataset) -> Hours:
    """Return the initial times as unique whole hours."""
    given = fields["init_time"].values
    if given.dtype.kind != "M":
        _fail(path, f"has initial times of the type {given.dtype} instead of times (CF units are read)")
    hours: Hours = given.astype("datetime64[h]")
    if (odd := given[hours != given]).size:
        _fail(path, f"has the initial time {odd[0]}, which is not a whole hour")
    times, repeats = np.unique(hours, return_counts=True)
    if (repeated := times[repeats > 1]).size:
        _fail(path, f"has more than one forecast from {repeated[0]}")
    return hours


def _hours(path: Path, fields: xr.Dataset) -> list[int]:
    """Return the lead times as unique whole hours."""
    lead, units = fields["lead_time"], fields["lead_time"].attrs.get("units", "hours")
    hours = lead.values / np.timedelta64(1, "h") if lead.dtype.kind == "m" else lead.values
    if lead.dtype.kind != "m" and units not in ("hours", "hour", "h"):
        _fail(path, f"has lead times in {units!r} instead of hours")
    if (odd := hours[hours != np.floor(hours)]).size:
        _fail(path, f"has the lead time {odd[0]:g} h, which is not a whole hour")
    if np.unique(hours).size < hours.size:
        _fail(path, f"has a lead time twice ({', '.join(f'{hour:g}' for hour in hours)} h)")
    return [int(hour) for hour in hours]


def _name(path: Path) -> str:
    if not re.fullmatch(r"[\w.-]+", path.stem) or path.stem in FORECASTS:
        raise ValueError(
            f"the file name of {path} cannot be used as a label of scores. Use letters, digits, dots, "
            f"underscores and hyphens, and none of {', '.join(FORECASTS)}."
        )
    return path.stem


def _fail(path: Path, what: str) -> NoReturn:
    raise ValueError(
        f"{path} {what}, so it cannot be compared with the run. Use the layout that `aqtopo forecast` writes."
    )
