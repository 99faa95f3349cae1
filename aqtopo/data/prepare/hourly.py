"""Reading of one hourly CAQRA file, in the units of `aqtopo.variables`.

Its dimensions are west-east, south-north and bottom-top (1); `lat2d` and `lon2d` are curvilinear.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import netCDF4
import numpy as np
from numpy.typing import NDArray

from aqtopo.data.channels import is_fill_value
from aqtopo.data.hdf5_heaps import check_heaps
from aqtopo.data.levels import implausible_level, level
from aqtopo.data.units import Conversion, UnitsError, conversion
from aqtopo.refusal import READ_ERRORS
from aqtopo.variables import DYNAMIC_VARIABLES, VARIABLES

Fields = NDArray[np.float32]

MAX_VALUES = 2**24
"""Maximum number of values of a variable: CAQRA's have 146,448. A compressed file may claim any number."""

ROWS, COLUMNS = "south-north", "west-east"

MAX_STEP = 2.0
"""Largest distance of neighbouring cells, as a multiple of the median; regular grids up to 80 N have 1.3."""


class UnusableFileError(Exception):
    """Unusable hourly file; the text gives the reason."""


class OtherGridError(UnusableFileError):
    """Hourly file on another grid."""


@dataclass(frozen=True, eq=False)
class SourceGrid:
    """Cell centres of the source grid: lat, lon (n, m) [degrees]."""

    lat: NDArray[np.float64]
    lon: NDArray[np.float64]

    @property
    def angle(self) -> NDArray[np.float64]:
        """Return the angle (n, m) from east to the columns' direction [rad], positive northward."""
        north = np.gradient(self.lat, axis=1)
        east = np.gradient(np.unwrap(self.lon, period=360.0, axis=1), axis=1) * np.cos(np.radians(self.lat))
        return np.arctan2(north, east)


@dataclass(frozen=True, eq=False)
class HourlyFields:
    """Fields of one hour.

    Attributes:
        fields: (C, n, m) float32 in the order and units of `DYNAMIC_VARIABLES`; NaN if missing.
        out_of_range: number of physically impossible values by channel; they are NaN in `fields`.
        converted: units of the file by channel, where they differ from the store's.
    """

    fields: Fields
    out_of_range: Mapping[str, int]
    converted: Mapping[str, str]


def read_grid(content: bytes) -> SourceGrid:
    """Read the cell centres of a file.

    Raises:
        UnusableFileError: the file cannot be read, or has no `lat2d`, `lon2d` of a grid.
    """
    with _open(content) as file:
        lat, lon = (_field(file, name)[0].astype(np.float64) for name in ("lat2d", "lon2d"))
    if not ((np.abs(lat) <= 90.0).all() and (np.abs(lon) <= 360.0).all()):
        raise UnusableFileError("has missing or impossible values in lat2d, lon2d")
    for axis in (0, 1):
        steps = _steps(lat, lon, axis)
        if steps.size and steps.max() > MAX_STEP * np.median(steps):
            row, column = np.unravel_index(int(steps.argmax()), steps.shape)
            raise UnusableFileError(f"has a jump in lat2d, lon2d at row {row}, column {column}")
    return SourceGrid(lat, lon)


def _steps(lat: NDArray[np.float64], lon: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Return the distances [rad] of neighbours along an axis."""
    phi, theta = np.radians(lat), np.radians(lon)
    place = np.stack([np.cos(phi) * np.cos(theta), np.cos(phi) * np.sin(theta), np.sin(phi)])
    steps: NDArray[np.float64] = np.linalg.norm(np.diff(place, axis=axis + 1), axis=0)
    return steps


def read_hour(content: bytes, grid: SourceGrid) -> HourlyFields:
    """Read the fields of a file whose cells lie on `grid`.

    Raises:
        UnusableFileError: the file is damaged, lacks a variable, lies on another grid, has unknown or
            implausible units, or has no value.
    """
    with _open(content) as file:
        for name, expected in (("lat2d", grid.lat), ("lon2d", grid.lon)):
            found = _field(file, name)[0]
            if found.shape != expected.shape or not np.allclose(found, expected, rtol=0, atol=1e-3):
                raise OtherGridError(f"lies on another grid than the first file: {name} differs")
        read = {name: _field(file, name) for name in DYNAMIC_VARIABLES}
    if any(values.shape != grid.lat.shape for values, _ in read.values()):
        raise UnusableFileError("has fields whose shape differs from lat2d")
    fields = np.empty((len(read), *grid.lat.shape), dtype=np.float32)
    out_of_range: dict[str, int] = {}
    converted: dict[str, str] = {}
    for place, (name, (values, units)) in enumerate(read.items()):
        change = _conversion(name, units)
        fields[place], out_of_range[name] = _in_range(name, values, change, units)
        if change != Conversion():
            converted[name] = units
    if not np.isfinite(fields).any():
        raise UnusableFileError("has no value")
    return HourlyFields(fields, out_of_range, converted)


def rotate_wind(fields: Fields, angle: NDArray[np.float64]) -> Fields:
    """Rotate u, v (the first two of (C, n, m)) from grid directions to east and north."""
    rotated = fields.copy()
    u, v = fields[:2]
    rotated[0] = u * np.cos(angle) - v * np.sin(angle)
    rotated[1] = u * np.sin(angle) + v * np.cos(angle)
    return rotated


def _open(content: bytes) -> Any:
    try:
        check_heaps(content)
        return netCDF4.Dataset("hour.nc", memory=content)
    except READ_ERRORS as error:
        raise UnusableFileError(f"is not a complete NetCDF file ({error})") from error


def _field(file: Any, name: str) -> tuple[Fields, str]:
    """Return a variable as (south-north, west-east) float32, NaN if missing, and its units."""
    if name not in file.variables:
        raise UnusableFileError(f"lacks the variable {name}")
    variable = file.variables[name]
    if ROWS not in variable.dimensions or COLUMNS not in variable.dimensions:
        raise UnusableFileError(f"has {name} on the dimensions {variable.dimensions}, not {ROWS}, {COLUMNS}")
    if getattr(variable.datatype, "kind", "O") not in "iuf":
        raise UnusableFileError(f"has {name} of the type {variable.datatype} instead of numbers")
    for key in ("scale_factor", "add_offset"):  # netCDF4 does not unpack if they are no numbers
        if np.asarray(getattr(variable, key, 0)).dtype.kind not in "iuf":
            raise UnusableFileError(f"has {name} with {key} = {getattr(variable, key)!r}")
    if variable.size > MAX_VALUES:
        raise UnusableFileError(
            f"has {variable.size} values of {name}, more than the maximum of {MAX_VALUES}"
        )
    try:
        values = np.ma.filled(np.ma.asarray(variable[...]).astype(np.float32), np.nan)
    except READ_ERRORS as error:
        raise UnusableFileError(f"is damaged in {name} ({error})") from error
    others = tuple(axis for axis, d in enumerate(variable.dimensions) if d not in (ROWS, COLUMNS))
    if any(values.shape[axis] != 1 for axis in others):
        raise UnusableFileError(f"has {name} with {variable.dimensions} of {values.shape}, not one level")
    flat: Fields = values.squeeze(others)
    horizontal = [d for d in variable.dimensions if d in (ROWS, COLUMNS)]
    return flat if horizontal == [ROWS, COLUMNS] else flat.T, str(getattr(variable, "units", ""))


def _conversion(name: str, units: str) -> Conversion:
    if not units.strip():
        raise UnusableFileError(f"gives {name} without units")
    try:
        change = conversion(units, VARIABLES[name].units)
    except UnitsError as error:
        raise UnusableFileError(f"gives {name} in units that cannot be used: {error}") from error
    if change.needs_density:
        raise UnusableFileError(f"gives {name} in {units!r}, a ratio of masses")
    return change


def _in_range(name: str, given: Fields, change: Conversion, units: str) -> tuple[Fields, int]:
    """Return converted values, with NaN for fill values and outside the physical range, and their number.

    Raises:
        UnusableFileError: the values show that the units are wrong.
    """
    variable = VARIABLES[name]
    low, high = variable.valid_range
    finite = np.isfinite(given)
    with np.errstate(over="ignore", invalid="ignore"):  # missing values may be the largest float32
        values = change(given.astype(np.float64)).astype(np.float32) if change != Conversion() else given
        inside = finite & (values >= low) & (values <= high) & ~is_fill_value(variable, given, values)
    wrong = int(finite.sum() - inside.sum())
    kept = np.where(inside, values, np.float32(np.nan))
    if 2 * wrong > finite.sum():
        raise UnusableFileError(
            f"has {wrong} of {finite.sum()} values of {name} outside {low:g} to {high:g} "
            f"{VARIABLES[name].units}: its units {units!r} are wrong"
        )
    fault = implausible_level(variable, level(variable, kept))
    if fault is not None:
        raise UnusableFileError(f"{fault} than {units!r}")
    return kept, wrong
