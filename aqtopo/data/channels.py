"""Reading of a variable from a dataset of `aqtopo.data.outside`, in the units of its description.

`open_channel` finds a variable and stays lazy; `Channel.load` reads a part of it, converts and checks it;
`read_channel` does both for all of it.
"""

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from aqtopo.data.coordinates import AXES
from aqtopo.data.levels import implausible_level, level
from aqtopo.data.missing import ZARR_ARRAYS, check_chunks
from aqtopo.data.names import find_variable
from aqtopo.data.units import Conversion, UnitsError, conversion
from aqtopo.refusal import READ_ERRORS, raise_input_error
from aqtopo.variables import VARIABLES, Variable

OnInvalid = Literal["refuse", "mask"]

FILL_VALUES = (
    -9999.0,
    -9999.9,
    -999.0,
    -999.9,
    -999.99,
    -99.0,
    -99.9,
    -99.99,
    -32768.0,
    -32767.0,
    1e15,
    1e20,
)
"""Fill values that files leave undeclared; larger ones are out of any range."""

FEWEST_FILLS, LEAST_OF_FILLS = 10, 0.05
"""Least number and share of cells of exactly -99 m or the like that are fill values, and no depression."""

GAS_CONSTANT_DRY_AIR = 287.05
"""[J kg-1 K-1]"""


class LoadedChannel(NamedTuple):
    """Values in the variable's units, float32, with counts.

    Attributes:
        values: dimensions in the order of `AXES`; NaN if missing, infinite or masked.
        masked: values that were no measurements and are now NaN; 0 unless masking was asked for.
        outside: values outside the valid range that are kept, such as small negative concentrations.
    """

    values: xr.DataArray
    masked: int
    outside: int


@dataclass(frozen=True, eq=False)
class Channel:
    """One variable of a dataset, lazy.

    Attributes:
        variable: description of the variable.
        given: array as it is in the dataset, in its own units; dimensions in the order of `AXES`.
        conversion: conversion to the variable's units.
        air: surface pressure and temperature, if the conversion needs the density of air.
        source: name of the dataset in messages.
        usual: mean of the training years, for pollutants; NaN if unknown.
    """

    variable: Variable
    given: xr.DataArray
    conversion: Conversion
    air: "tuple[Channel, Channel] | None"
    source: str
    usual: float = math.nan

    def load(self, on_invalid: OnInvalid = "refuse", **positions: Any) -> LoadedChannel:
        """Read values at some positions by dimension, as for `isel`, convert and check them.

        Args:
            on_invalid: `refuse` an undeclared fill value or an impossible magnitude, or `mask` and count it.
            **positions: positions by dimension; all of a dimension that is not named.

        Raises:
            ValueError: the file is damaged, the mean shows other units, or `refuse` and a value is no
                measurement.
        """
        given = self.given.isel(positions)
        try:
            raw = given.load()
            if np.isinf(raw.values).any():
                raw = raw.where(np.isfinite(raw))
        except READ_ERRORS as error:
            raise_input_error(
                self.source, f"is damaged in {given.name} ({error})", "Download or copy the file again"
            )
        exact = self.conversion == Conversion() and self.air is None
        with np.errstate(over="ignore", invalid="ignore"):
            values = raw if exact else self.conversion(raw.astype(np.float64))
            if self.air is not None:
                density = _air_density(*self.air, on_invalid, positions)
                values = (values * density).transpose(*raw.dims)
            low, high = possible_range(self.variable)
            fill = is_fill_value(self.variable, raw.values, values.values)
            beyond = ((values.values < low) | (values.values > high)) & ~fill
        if on_invalid == "refuse":
            self._refuse_fill(raw, fill)
            self._refuse_beyond(values, beyond)
        invalid = fill | beyond
        with np.errstate(over="ignore"):
            kept = (values.where(~invalid) if invalid.any() else values).astype(np.float32)
        self._refuse_level(kept.values)
        kept.attrs = {"units": self.variable.units, "long_name": self.variable.long_name}
        outside = count_outside(self.variable, kept.values)
        return LoadedChannel(kept.rename(self.variable.name), int(invalid.sum()), outside)

    def _refuse_fill(self, raw: xr.DataArray, fill: NDArray[np.bool_]) -> None:
        if not fill.any():
            return
        value = raw.values[fill][0]
        raise_input_error(
            self.source,
            f"has {raw.name} = {value:g} in {fill.sum()} of {fill.size} values, first at "
            f"{_place(raw, fill)}: a fill value that is not declared",
            f"Declare it as the attribute `_FillValue`, or replace it: `d['{raw.name}'].where("
            f"d['{raw.name}'] != {value:g})`",
        )

    def _refuse_beyond(self, values: xr.DataArray, beyond: NDArray[np.bool_]) -> None:
        if not beyond.any():
            return
        low, high = self.variable.valid_range
        units = self.variable.units
        given = self.given.attrs.get("units")
        raise_input_error(
            self.source,
            f"has {self.given.name} = {values.values[beyond][0]:g} {units} (given in {given!r}), and "
            f"{beyond.sum()} of {beyond.size} values are far outside {low:g} to {high:g} {units}, first at "
            f"{_place(values, beyond)}",
            "Correct the attribute `units` if it is wrong, or set impossible values to NaN",
        )

    def _refuse_level(self, values: NDArray[np.float32]) -> None:
        fault = implausible_level(self.variable, level(self.variable, values), self.usual)
        if fault is not None:
            raise_input_error(
                self.source,
                f"{fault} than its `units` {self.given.attrs.get('units')!r}",
                f"Correct the attribute `units`, or convert {self.given.name} to {self.variable.units}",
            )


def read_channel(
    dataset: xr.Dataset, variable: Variable, *, on_invalid: OnInvalid = "refuse"
) -> LoadedChannel:
    """Return all values of a variable in its units.

    Args:
        dataset: as `open_outside` returns it.
        variable: the variable to find, by its name, else CF standard name, else a known alias.
        on_invalid: `refuse` an undeclared fill value or an impossible magnitude, or `mask` and count it.

    Returns:
        `values` in the units of `variable`, float32, NaN if missing, with the dimensions in the order
        (init_time, lead_time, time, lat, lon); `masked` and `outside`, the numbers of values that were masked
        and that are kept outside the valid range.

    Raises:
        ValueError: it is missing, ambiguous, in unusable units, on other dimensions, or has no value.
    """
    channel = open_channel(dataset, variable)
    loaded = channel.load(on_invalid)
    if not np.isfinite(loaded.values.values).any():
        raise_input_error(
            channel.source, f"has no value of {channel.given.name}", "Give a file with at least one value"
        )
    return loaded


def open_channel(dataset: xr.Dataset, variable: Variable) -> Channel:
    """Find a variable and its conversion, without reading values.

    Raises:
        ValueError: it is missing, ambiguous, in unusable units, or on other dimensions.
    """
    source = str(dataset.encoding.get("source", "The dataset"))
    name = find_variable(dataset, variable, source)
    given = _on_axes(dataset[name], variable, source)
    if given.dtype.kind not in "iuf":
        raise_input_error(source, f"has {name} of the type {given.dtype}", "Write it as numbers")
    for folder in given.attrs.get(ZARR_ARRAYS, []):
        check_chunks(Path(folder), zeros_are_usual=_zeros_are_usual(variable))
    units = given.attrs.get("units")
    if not isinstance(units, str) or not units.strip():
        raise_input_error(
            source,
            f"has {name} without units",
            f"Set them, for example `d['{name}'].attrs['units'] = '{variable.units}'`",
        )
    try:
        change = conversion(units, variable.units)
    except UnitsError as error:
        raise_input_error(source, f"has {name} in units that cannot be used: {error}", "No value was changed")
    air = _open_air(dataset, str(name), units, variable, source) if change.needs_density else None
    return Channel(variable, given, change, air, source)


def _zeros_are_usual(variable: Variable) -> bool:
    """Return whether a large area of zeros is usual: sea in static fields; precipitation, emissions."""
    amount = variable.name not in VARIABLES and not variable.pollutant and variable.valid_range[0] == 0
    return variable.kind == "static" or amount


def possible_range(variable: Variable) -> tuple[float, float]:
    """Return the limits beyond which a value is no measurement and no forecast, in the variable's units.

    A constant field must lie within the valid range. A forecast may overshoot it: by a tenth of the range, a
    pollutant to twice the highest and, below zero, by 1% of the highest or three standard deviations.
    """
    low, high = variable.valid_range
    if variable.kind == "static":
        return low, high
    if variable.pollutant:
        return min(low, -max(0.01 * high, 3.0 * (variable.topoflow_std or 0.0))), 2.0 * high
    margin = 0.1 * (high - low)
    return low - margin, high + margin


def count_outside(variable: Variable, values: NDArray[np.floating[Any]]) -> int:
    """Return the number of values outside the valid range."""
    low, high = variable.valid_range
    with np.errstate(invalid="ignore"):
        return int(np.count_nonzero((values < low) | (values > high)))


def no_data(variable: Variable, values: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
    """Return where values in the variable's units are fill values or impossible; False where missing."""
    low, high = possible_range(variable)
    with np.errstate(invalid="ignore"):
        beyond = (values < low) | (values > high)
    found: NDArray[np.bool_] = (beyond | is_fill_value(variable, values, values)) & np.isfinite(values)
    return found


def _on_axes(array: xr.DataArray, variable: Variable, source: str) -> xr.DataArray:
    """Return an array with its dimensions in the order of `AXES`; others of size 1 are dropped."""
    name = array.name
    allowed = ("lat", "lon") if variable.kind == "static" else tuple(AXES)
    curvilinear = {d for axis in ("lat", "lon") if axis in array.coords for d in array[axis].dims}
    array = drop_single(array, {*allowed, *curvilinear}, source)
    for axis in ("lat", "lon"):
        if axis not in array.coords or (axis not in array.dims and array[axis].ndim < 2):
            raise_input_error(
                source,
                f"has {name} on {array.dims} without the {AXES[axis]}s of its cells",
                f"Add the coordinate `{axis}` with the standard_name {AXES[axis]}",
            )
    order = [d for d in AXES if d in array.dims]
    return array.transpose(*order, *(d for d in array.dims if d not in order))


def drop_single(array: xr.DataArray, kept: Iterable[Hashable], source: str) -> xr.DataArray:
    """Return an array without its dimensions of size 1 that are not kept.

    Raises:
        ValueError: a further dimension is larger, or one is there twice.
    """
    if len(set(array.dims)) < len(array.dims):
        raise_input_error(
            source, f"has {array.name} with one dimension twice: {array.dims}", "Rename one of them"
        )
    more = [d for d in array.dims if d not in kept]
    large = [f"{d} (size {array.sizes[d]})" for d in more if array.sizes[d] != 1]
    if large:
        raise_input_error(
            source,
            f"has {array.name} on the further dimension {', '.join(large)}",
            f"Select one value, for example `d.isel({large[0].split(' ')[0]}=0)`, or take a mean",
        )
    return array.squeeze(more, drop=True)


def _open_air(
    dataset: xr.Dataset, name: str, units: str, variable: Variable, source: str
) -> tuple[Channel, Channel]:
    """Find the dataset's surface pressure and temperature."""
    try:
        return open_channel(dataset, VARIABLES["psfc"]), open_channel(dataset, VARIABLES["temp"])
    except ValueError as error:
        raise_input_error(
            source,
            f"has {name} in {units!r}, a ratio of masses, which needs surface pressure and air temperature "
            f"to become {variable.units!r} ({error})",
            f"Add both to the dataset, or convert {name} to {variable.units!r}",
        )


def _air_density(
    pressure: Channel, temperature: Channel, on_invalid: OnInvalid, positions: Mapping[str, Any]
) -> xr.DataArray:
    """Return the density of dry air [kg m-3]; pressure and temperature are checked as any channel is."""
    pascal, kelvin = (
        channel.load(on_invalid, **{d: p for d, p in positions.items() if d in channel.given.dims})
        for channel in (pressure, temperature)
    )
    density: xr.DataArray = pascal.values.astype(np.float64) / (
        GAS_CONSTANT_DRY_AIR * kelvin.values.astype(np.float64)
    )
    return density


def is_fill_value(variable: Variable, raw: NDArray[Any], values: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where values, raw in their file and converted, are fill values that are not declared."""
    suspicious = ~((raw > -99.0 + 1e-3) & (raw < 1e15 * 0.999)) & ~np.isnan(raw)
    found = np.zeros(raw.shape, dtype=bool)
    if suspicious.any():
        chosen = raw[suspicious].astype(np.float64)
        # Relative: float32 cannot hold -999.9 or 1e20.
        found[suspicious] = np.isclose(chosen[:, None], FILL_VALUES, rtol=1e-6, atol=0).any(axis=1) | (
            np.abs(chosen) >= 1e15 * 0.999
        )
    if found.any() and (variable.kind == "static" or variable.name not in VARIABLES):
        low, high = variable.valid_range
        within = found & (values >= low) & (values <= high)
        found &= ~within  # -99 m is a depression, 1e16 cm-2 a column of HCHO
        if variable.name == "elevation":
            for fill in np.unique(raw[within]):
                same = raw == fill
                found |= same & (np.count_nonzero(same) >= max(FEWEST_FILLS, LEAST_OF_FILLS * raw.size))
    return found


def _place(array: xr.DataArray, where: NDArray[np.bool_]) -> str:
    """Return the coordinates of the first True as text."""
    index = np.unravel_index(int(where.argmax()), where.shape)
    position = dict(zip(array.dims, index, strict=True))
    shown = []
    for axis in AXES:
        if axis not in array.coords:
            continue
        coordinate = array[axis]
        value = coordinate.isel({d: position[d] for d in coordinate.dims}).values
        text = np.datetime_as_string(value, "m") if coordinate.dtype.kind == "M" else f"{float(value):g}"
        shown.append(f"{AXES[axis]} {text}")
    return ", ".join(shown) or str(tuple(int(i) for i in index))
