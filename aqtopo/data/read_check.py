"""Checks of values when they are read: of each hour its range, of each split the level of its channels.

A store may have changed since its statistics were computed. `HourCheck` takes 0.04 ms for 11 fields of 128 x
256. A channel without a value in one hour is usual (it is filled or masked, and counted); `check_hours`
refuses one without a value on all days of a sample.

Shapes: C channels, H x W grid.
"""

import math
from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from aqtopo.data.channels import Channel, no_data
from aqtopo.data.levels import implausible_level, level
from aqtopo.data.schema import HOURS_PER_SHARD, Hours, raise_store_error
from aqtopo.data.store import Store
from aqtopo.data.units import Conversion
from aqtopo.variables import Variable

CHECKED_HOURS = 24
"""Hours of a split that `check_hours` reads."""

ABOVE_FILLS = -98.9
"""Fill values are lower; CAQRA's variables may be as low as them."""


class HourCheck:
    """Check of the fields of an hour against their possible ranges and fill values.

    Args:
        store: the data.
        names: the channels that are read, unless a call names others.
    """

    def __init__(self, store: Store, names: Sequence[str] = ()) -> None:
        self._store = store
        self._names = np.isin(store.channels, names)
        limits = [_unsuspicious(store.variables[name]) for name in store.channels]
        self._low, self._high = np.array(limits, dtype=np.float32).T

    def __call__(
        self, index: int, fields: NDArray[np.float32], read: NDArray[np.bool_] | None = None
    ) -> None:
        """Check the fields (C, H, W) at a time index; only the channels `read` (C,), if they are given.

        Raises:
            ValueError: a value is a fill value or impossible; the message names the channel and the hour.
        """
        values = fields.reshape(len(fields), -1)
        with np.errstate(invalid="ignore"):  # all values of a channel may be missing
            lowest, highest = np.fmin.reduce(values, axis=1), np.fmax.reduce(values, axis=1)
            suspicious = (self._names if read is None else read) & (
                (lowest < self._low) | (highest > self._high)
            )
        for place in np.flatnonzero(suspicious):
            name = self._store.channels[place]
            if no_data(self._store.variables[name], fields[place]).any():
                check_field(self._store, self._store.times[index], name, fields[place])

    def read_span(self, first: int, last: int) -> NDArray[np.float32]:
        """Read the hours [first, last) of one shard, (n, C, H, W), and check them.

        Raises:
            ValueError: as `Store.read_span`, or as a call.
        """
        fields = self._store.read_span(first, last)
        for index, hour in enumerate(fields, first):
            self(index, hour)
        return fields


def check_field(
    store: Store, time: np.datetime64, name: str, values: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Check range, fill values and level of a channel (H, W); return it, with NaN for infinite values.

    Raises:
        ValueError: a value is a fill value or impossible, or their mean shows other units.
    """
    variable = store.variables[name]
    given = xr.DataArray(
        values, dims=("lat", "lon"), coords={"lat": store.lat, "lon": store.lon}, name=name
    ).assign_attrs(units=variable.units)
    source = f"The data store {store.path} at {time}"
    checked: NDArray[np.float32] = (
        Channel(variable, given, Conversion(), None, source, store.mean.get(name, math.nan))
        .load()
        .values.values
    )
    return checked


def check_hours(store: Store, names: Sequence[str], times: Hours) -> None:
    """Check the level of channels at a sample of times, and that each has a value.

    Args:
        store: the data.
        names: channels that are read.
        times: stored hours, of which `CHECKED_HOURS` are read.

    Raises:
        ValueError: a channel has no value or the level of other units, or an hour has impossible values.
    """
    chosen = times[np.unique(np.linspace(0, times.size - 1, CHECKED_HOURS).astype(int))]
    check, read = HourCheck(store, names), np.isin(store.channels, names)
    indices = store.locate(chosen).tolist()
    levels, known = np.full((chosen.size, read.size), np.nan), ~read
    for row, index in zip(levels, indices, strict=True):
        fields = check.read_span(index, index + 1)[0]
        known |= np.isfinite(fields).any(axis=(1, 2))
        row[:] = [level(store.variables[n], f) for n, f in zip(store.channels, fields, strict=True)]
    for day in dict.fromkeys(index // HOURS_PER_SHARD * HOURS_PER_SHARD for index in indices):
        if not known.all():  # a satellite may see an area once a day
            fields = store.read_span(day, min(day + HOURS_PER_SHARD, store.times.size))
            known |= np.isfinite(fields).any(axis=(0, 2, 3))
    period = f"at {chosen.size} hours from {chosen[0]} to {chosen[-1]}"
    for place in np.flatnonzero(read):
        name, found = store.channels[place], levels[:, place][np.isfinite(levels[:, place])]
        if not known[place]:
            raise_store_error(
                store.path,
                f"has no value of {name} {period}, nor on their days",
                f"Write the store again with values for it, or leave {name} out of the run's variables.",
            )
        mean = float(found.mean()) if found.size else math.nan
        fault = implausible_level(store.variables[name], mean, store.mean.get(name, math.nan))
        if fault is not None:
            remedy = f"Convert {name} to {store.variables[name].units} and write the store again."
            raise_store_error(store.path, f"{fault}, {period}", remedy)


def _unsuspicious(variable: Variable) -> tuple[float, float]:
    """Return a range without fill values and impossible values, to be compared first."""
    low, high = variable.valid_range
    return max(low, ABOVE_FILLS), high
