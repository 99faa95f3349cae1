"""Another model's forecasts, laid out as `aqtopo forecast` writes them, for the same days and cells."""

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
"""Coordinates kept in float32 differ by 1e-5 degrees."""

DIMENSIONS = ("init_time", "lead_time", "lat", "lon")


@dataclass(frozen=True, eq=False)
class OtherForecasts:
    """Forecasts of another model on the same grid, read when they are asked for.

    Attributes:
        name: the file's name without its suffix.
        fields: (init_time, pollutant, lead_time, lat, lon) as a dataset of pollutants, cells in the store's
            order.
        init_times: (T,) UTC, as `fields` has them.
    """

    name: str
    fields: xr.Dataset
    init_times: Hours

    def at(self, init_times: Hours) -> NDArray[np.float32]:
        """The forecasts from `init_times` (B,), all of which must be there: (B, K, C, H, W)."""
        rows = [int(np.flatnonzero(self.init_times == time)[0]) for time in init_times]
        chosen = self.fields.isel(init_time=rows).load()
        stacked = np.stack([chosen[name].values for name in chosen.data_vars], axis=2)
        return stacked.astype(np.float32)


def open_other(
    path: Path, store: Store, pollutants: Sequence[str], horizons_h: Sequence[int]
) -> OtherForecasts:
    """Open another model's forecasts and check that they can be compared.

    Args:
        path: NetCDF or zarr. `init_time` is a scalar, as `aqtopo forecast` writes it, or a dimension.
        store: the grid that forecasts are scored on.
        pollutants: what is scored, C short names.
        horizons_h: at which lead times, K.

    Raises:
        ValueError: the file cannot be read, or pollutants, units, grid or lead times are others.
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
        _refuse(path, f"lacks the lead time of {absent[0]} h (it has {', '.join(map(str, leads))} h)")
    fields = fields.isel(lead_time=[leads.index(hours) for hours in horizons_h])
    try:
        # By coordinate, so that an axis may run the other way.
        fields = fields.sel(lat=store.lat, method="nearest", tolerance=GRID_TOLERANCE_DEG)
        fields = fields.sel(lon=store.lon, method="nearest", tolerance=GRID_TOLERANCE_DEG)
    except KeyError:
        _refuse(path, f"is on another grid than {store.path}; bring it to that grid first")
    except (ValueError, InvalidIndexError) as error:
        _refuse(path, f"has an axis that values cannot be looked up on ({error})")
    fields = fields.transpose(*DIMENSIONS)
    return OtherForecasts(_name(path), fields, _init_times(path, fields))


def _open(path: Path) -> xr.Dataset:
    # Lead times are kept as the numbers of hours they are.
    # Consolidated metadata are not looked for: xarray warns at length of a store without them.
    zarr: dict[str, Any] = {"engine": "zarr", "consolidated": False} if path.suffix == ".zarr" else {}
    opened: xr.Dataset = xr.open_dataset(path, decode_timedelta=False, **zarr)
    return opened


def _why(path: Path, error: Exception) -> str:
    """The plain reason, where there is one: xarray answers with all its engines and where to get more."""
    if not path.exists():
        return "there is no such file"
    return str(error) if path.suffix in SUFFIXES else f"its name does not end in {' or '.join(SUFFIXES)}"


def _check_variables(path: Path, dataset: xr.Dataset, pollutants: Sequence[str]) -> None:
    for axis in DIMENSIONS:
        if axis not in dataset.coords:
            _refuse(path, f"lacks the coordinate {axis}")
    absent = [name for name in pollutants if name not in dataset]
    if absent:
        _refuse(path, f"lacks {', '.join(absent)}")
    for name in pollutants:
        units = dataset[name].attrs.get("units")
        if units != VARIABLES[name].units:
            _refuse(path, f"has {name} in {units!r}, and the run in {VARIABLES[name].units!r}")


def _check_dimensions(path: Path, fields: xr.Dataset) -> None:
    absent = [name for name in DIMENSIONS if name not in fields.dims]
    if absent:
        _refuse(path, f"lacks the dimension {absent[0]}")
    more = [str(name) for name in fields.dims if name not in DIMENSIONS]
    if more:
        _refuse(path, f"has fields along {', '.join(more)}, of which one must be chosen or a mean taken")


def _init_times(path: Path, fields: xr.Dataset) -> Hours:
    """Initial times as whole hours, each of which is there once."""
    given = fields["init_time"].values
    if given.dtype.kind != "M":
        _refuse(path, f"has initial times that are no times but {given.dtype} (units of CF are read)")
    hours: Hours = given.astype("datetime64[h]")
    if (odd := given[hours != given]).size:
        _refuse(path, f"has the initial time {odd[0]}, between hours")
    times, repeats = np.unique(hours, return_counts=True)
    if (repeated := times[repeats > 1]).size:
        _refuse(path, f"has more than one forecast from {repeated[0]}")
    return hours


def _hours(path: Path, fields: xr.Dataset) -> list[int]:
    """Lead times as whole hours, each of which is there once."""
    lead, units = fields["lead_time"], fields["lead_time"].attrs.get("units", "hours")
    hours = lead.values / np.timedelta64(1, "h") if lead.dtype.kind == "m" else lead.values
    if lead.dtype.kind != "m" and units not in ("hours", "hour", "h"):
        _refuse(path, f"has lead times in {units!r} instead of hours")
    if (odd := hours[hours != np.floor(hours)]).size:
        _refuse(path, f"has the lead time of {odd[0]:g} h, between hours")
    if np.unique(hours).size < hours.size:
        _refuse(path, f"has a lead time twice ({', '.join(f'{hour:g}' for hour in hours)} h)")
    return [int(hour) for hour in hours]


def _name(path: Path) -> str:
    if not re.fullmatch(r"[\w.-]+", path.stem) or path.stem in FORECASTS:
        raise ValueError(
            f"{path} is not a name that scores can be listed under. Use letters, digits, dots, underscores "
            f"and hyphens, and none of {', '.join(FORECASTS)}."
        )
    return path.stem


def _refuse(path: Path, what: str) -> NoReturn:
    raise ValueError(
        f"{path} {what}, so it cannot be scored beside the run. `aqtopo forecast` writes the layout that is "
        "read."
    )
