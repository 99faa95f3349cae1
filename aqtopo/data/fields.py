"""Fields from outside as a store in memory, so that a model reads them as it reads its store."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from dataclasses import fields as dataclass_fields

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from aqtopo.data.channels import open_channel
from aqtopo.data.coordinates import AXES, rows_of
from aqtopo.data.outside import normalise
from aqtopo.data.schema import Hours
from aqtopo.data.store import Store
from aqtopo.refusal import raise_input_error


@dataclass(frozen=True, eq=False)
class FieldsInMemory(Store):
    """Store whose hourly fields are an array.

    Attributes:
        values: (T, C, H, W) float32, NaN where missing.
    """

    values: NDArray[np.float32] = field(kw_only=True, repr=False)

    def read_span(self, first: int, last: int) -> NDArray[np.float32]:
        """Return the fields of the hours [first, last), (n, C, H, W)."""
        return self.values[first:last]

    read_without_deadline = read_span


def open_fields(dataset: xr.Dataset) -> xr.Dataset:
    """Return a user's fields with axes in normal form and whole hours as `time`.

    Raises:
        ValueError: the axes are not understood, or there are no times or not whole hours.
    """
    given = normalise(dataset, str(dataset.encoding.get("source") or "The dataset of fields"))
    source = given.encoding["source"]
    if "time" not in given.coords:
        raise_input_error(
            source, "has no time axis", "Add the coordinate `time` [UTC], one hour for each field"
        )
    if "time" not in given.dims:
        given = given.expand_dims("time")
    times = given["time"].values
    odd = times[times.astype("datetime64[h]") != times]
    if odd.size:
        raise_input_error(source, f"has the time {odd[0]}, which is not a whole hour", "Give hourly fields")
    given.encoding["source"] = source
    return given


def read_fields(given: xr.Dataset, like: Store, names: Sequence[str], hours: Hours) -> FieldsInMemory:
    """Read fields into memory, on the grid and in the units of a store.

    Args:
        given: from `open_fields`; variables and units are recognised as `aqtopo.data.channels` does.
        like: store of the grid, descriptions, static fields and statistics.
        names: hourly variables to read; the other channels are NaN.
        hours: (T,) hours to read.

    Raises:
        ValueError: an hour or a variable is missing, units or grid do not fit, or a value is impossible.
    """
    source, times = str(given.encoding["source"]), given["time"].values.astype("datetime64[h]")
    absent = hours[~np.isin(hours, times)]
    if absent.size:
        raise_input_error(
            source,
            f"has no fields at {', '.join(map(str, absent))}; it has {times.size} hour(s) from {times[0]} to "
            f"{times[-1]}",
            "Add these hours. `needs()` of the model lists what a forecast reads",
        )
    for axis, wanted, period in (("lat", like.lat, None), ("lon", like.lon, 360.0)):
        rows = rows_of(given[axis].values, wanted, period) if axis in given.dims else None
        if rows is None:
            raise_input_error(
                source,
                f"is on another grid than the model's: {wanted.size} {AXES[axis]}s from {wanted[0]:g} to "
                f"{wanted[-1]:g}",
                "Interpolate it to that grid first, for example with `d.interp(lat=..., lon=...)`",
            )
        given = given.isel({axis: rows})
    given = given.isel(time=np.searchsorted(times, hours))
    given.encoding["source"] = source
    values = np.full((hours.size, len(like.channels), *like.grid), np.nan, np.float32)
    for name in names:
        usual = like.mean.get(name, math.nan)
        channel = replace(open_channel(given, like.variables[name]), usual=usual)
        if channel.given.dims != ("time", "lat", "lon"):
            raise_input_error(
                source,
                f"has {channel.given.name} on {channel.given.dims}",
                "Give it on time, latitude and longitude",
            )
        values[:, like.channels.index(name)] = channel.load().values.values
    same = {each.name: getattr(like, each.name) for each in dataclass_fields(Store)}
    origin = str(given.attrs.get("source") or source)
    return FieldsInMemory(**same | {"path": source, "times": hours, "source": origin}, values=values)
