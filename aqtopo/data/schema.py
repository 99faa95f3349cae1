"""Layout of a data store, and the checks of written blocks and opened stores.

A store is one zarr v3 group:

* `fields (time, channel, lat, lon)` float32: the hourly variables in any order, `u` and `v` among them; one
  chunk per hour, one shard (a file) per day.
* `static (static_channel, lat, lon)` float32: `elevation`, `lat2d`, `lon2d`, `mask` and others, all values
  finite; `mask` is 1 in the cells of the loss and the scores, else 0.
* coordinates `time` (UTC, whole hours, increasing, gaps allowed), `lat`, `lon` (strictly monotonic,
  ascending or descending), `channel`, `static_channel`.
* attributes: `schema_version`, `source`, and after `aqtopo data statistics` `channel_mean`, `channel_std`,
  `statistics_years`, and those of other years in `further_statistics`. The attributes of `fields` and
  `static` describe their channels (`aqtopo.data.descriptions`).

A failed check raises a `ValueError` of one paragraph: the store, the fault and the remedy.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from aqtopo.data.descriptions import MASK, attribute_mapping
from aqtopo.refusal import UnreadableDataError
from aqtopo.safe_files import special_in
from aqtopo.variables import NEEDED_CHANNELS, VARIABLES, check_name

if TYPE_CHECKING:
    import xarray as xr

SCHEMA_VERSION = 1
"""Layout version; incremented when a store of the old layout could be read wrongly."""

HOURS_PER_SHARD = 24
"""Hours in one file of `fields`: a year is 366 files, and a day is written or lost as a whole."""

FIELDS_DIMS = ("time", "channel", "lat", "lon")
STATIC_DIMS = ("static_channel", "lat", "lon")

MAX_SMALL_BYTES, MAX_SMALL_FILES = 2**29, 2**16
"""Largest size and number of files of coordinates and static fields together: damaged ones must not take all
memory or time. 80 years of hours have 6 MB, 20 static fields of 1000 x 2000 cells 160 MB."""

ARRAYS = {"fields": FIELDS_DIMS, "static": STATIC_DIMS}
"""Dimensions of each array."""

MIN_PEAK_M = 10.0
"""Lowest plausible maximum of a non-flat elevation [m]; Earth's maximum is 8.8 km."""

Hours = NDArray[np.datetime64]
"""Times with the resolution of an hour, UTC (`datetime64[h]`)."""


def raise_store_error(store: object, what: str, remedy: str) -> NoReturn:
    """Raise a `ValueError` that names an unusable store, the fault and the remedy."""
    raise ValueError(f"The data store {store} {what}. {remedy}")


def raise_unreadable(store: object, what: str, remedy: str) -> NoReturn:
    """Raise the error for hours that cannot be read now but may be readable later."""
    raise UnreadableDataError(f"The data store {store} {what}. {remedy}")


def check_metadata_files(store: "str | Path") -> None:
    """Check that no file of a store's metadata is a device; the deadline ends the wait for a pipe."""
    special = special_in(Path(store), "zarr.json")
    if special is not None and not special.is_fifo():
        raise_store_error(store, f"has a device at {special}", "Copy it again from its source.")


def check_small_arrays(store: object, arrays: "Mapping[str, Any]") -> None:
    """Check that zarr's coordinates and static fields, by name, have all their files and a plausible size."""
    total = 0
    for name, array in arrays.items():
        total += array.size * array.dtype.itemsize
        if total > MAX_SMALL_BYTES or array.nchunks > MAX_SMALL_FILES:
            shape = " x ".join(map(str, array.shape))
            raise_store_error(
                store, f"has {shape} values in `{name}`, too many", "Copy it again from its source."
            )
        if lost := array.nchunks - array.nchunks_initialized:  # zarr reads it as fill values
            fault = f"has lost {lost} of {array.nchunks} files of `{name}`"
            raise_store_error(store, fault, "Copy it again from its source.")


def check_layout(store: object, dataset: "xr.Dataset", first: bool = True) -> None:
    """Check the arrays, coordinates, channels, units and source of a data set.

    Args:
        store: path of the store, for the message.
        dataset: content of a store or a block of it.
        first: False for a block that is appended, which needs only `fields`.
    """
    names: dict[str, list[str]] = {}
    for array, dims in ARRAYS.items():
        if array == "static" and not first:
            continue
        if array not in dataset or dataset[array].dims != dims or dataset[array].dtype != np.float32:
            remedy = "Write it from a dataset with that array."
            raise_store_error(store, f"lacks the float32 array `{array} {dims}`", remedy)
        absent = [dim for dim in dims if dim not in dataset.coords]
        if absent:
            remedy = "Write it from a dataset with that coordinate."
            raise_store_error(store, f"lacks the coordinate `{absent[0]}`", remedy)
        names[array] = dataset["channel" if array == "fields" else "static_channel"].values.tolist()
        _check_names(store, array, names[array])
        _check_units(
            store, attribute_mapping(f"The data store {store}", dataset[array].attrs, "channel_units")
        )
    both = set(names["fields"]) & set(names.get("static", ()))
    if both:
        raise_store_error(store, f"has {', '.join(both)} in both arrays", "Write it again with one of them.")
    for axis in ("lat", "lon"):
        _check_axis(store, axis, dataset[axis].values)
    if first and not isinstance(dataset.attrs.get("source"), str):
        remedy = "Set it to a string that names the origin of the data."
        raise_store_error(store, "has no attribute `source`", remedy)


def _check_names(store: object, array: str, found: Sequence[object]) -> None:
    """Check that an array has the channels that every store holds, and that names are usable and unique."""
    for name in found:
        if not (array == "static" and name == MASK):
            try:
                check_name(name)
            except ValueError as error:
                raise_store_error(store, f"has an unusable channel in `{array}`", str(error))
    missing = [name for name in NEEDED_CHANNELS[array] if name not in found]
    remedy = f"Every store has {', '.join(NEEDED_CHANNELS[array])} in `{array}`: write it again with them."
    if missing:
        raise_store_error(store, f"lacks the channel {', '.join(missing)} in `{array}`", remedy)
    if len(found) != len(set(found)):
        listed = ", ".join(map(str, found))
        raise_store_error(store, f"names a channel twice in `{array}` ({listed})", "Write it again with one.")


def _check_units(store: object, units: Mapping[str, object]) -> None:
    """Check that units are those of `aqtopo.variables`, for the channels with a name listed there."""
    for name, found in units.items():
        if name in VARIABLES and found != VARIABLES[name].units:
            raise_store_error(
                store,
                f"gives the channel {name} in {found!r}",
                f"It must be in {VARIABLES[name].units!r}: convert the values and write the store again.",
            )


def checked_times(store: object, times: NDArray[np.datetime64]) -> Hours:
    """Check a time axis: not empty, whole hours, strictly increasing; return it as `datetime64[h]`."""
    if times.dtype.kind != "M":
        raise_store_error(
            store,
            f"has a time axis whose values or calendar are unknown (type {times.dtype})",
            "Write it again with times of the standard calendar.",
        )
    hours = times.astype("datetime64[h]")
    if hours.size == 0:
        raise_store_error(store, "has an empty time axis", "Write at least one hour to it.")
    if np.isnat(times).any():
        raise_store_error(
            store, "has a missing value on its time axis", "Write it again with a time for every field."
        )
    between = np.flatnonzero(hours != times)
    if between.size:
        raise_store_error(
            store,
            f"has the time {times[between[0]]}, which is not a whole hour",
            "Times must be whole hours UTC: correct the time axis and write the store again.",
        )
    steps = np.diff(hours)
    wrong = np.flatnonzero(steps <= np.timedelta64(0, "h"))
    if wrong.size:
        fault = "repeated" if steps[wrong[0]] == np.timedelta64(0, "h") else "out of order"
        raise_store_error(
            store,
            f"has the time {hours[wrong[0] + 1]} {fault} on its time axis",
            "Sort the hours, drop the repeated ones, and write the store again.",
        )
    return hours


def _check_axis(store: object, name: str, values: NDArray[np.float64]) -> None:
    """Check that a latitude or longitude axis is strictly monotonic, either way, and has no jump."""
    steps = np.diff(values)
    remedy = f"Sort the rows and columns by `{name}` and write the store anew."
    if name == "lon":
        remedy = (
            "Bring the longitudes to -180..180, sort the columns by them and write the store anew: "
            "`d.assign_coords(lon=(d.lon + 180) % 360 - 180).sortby('lon')`."
        )
    if values.ndim != 1 or not (np.all(steps > 0) or np.all(steps < 0)):
        raise_store_error(store, f"has a coordinate `{name}` that is not strictly monotonic", remedy)
    largest = int(np.abs(steps).argmax()) if steps.size else 0
    if steps.size > 1 and abs(steps[largest]) > 1.5 * np.median(np.abs(steps)):
        raise_store_error(
            store,
            f"has a jump in the coordinate `{name}` from {values[largest]:g} to {values[largest + 1]:g}, "
            f"where the other steps are {np.median(steps):g}",
            remedy if name == "lon" else "Write it anew with all rows.",
        )


def check_static(store: object, static: Mapping[str, NDArray[np.float32]]) -> None:
    """Check that all static values are finite and the mask is 0 or 1."""
    for name, values in static.items():
        bad = int(np.count_nonzero(~np.isfinite(values)))
        if bad == values.size:
            raise_store_error(
                store, f"has no finite value in the static channel {name}", "Write it again with data."
            )
        if bad:
            raise_store_error(
                store,
                f"has {bad} of {values.size} cells without a finite value in the static channel {name}",
                "A static field must be complete: fill these cells (0 m over sea) and write it again.",
            )
    if not np.isin(static["mask"], (0.0, 1.0)).all():
        raise_store_error(
            store,
            "has a mask with values other than 0 and 1",
            "Write 1 in the cells of the loss and the scores, and 0 elsewhere.",
        )


COORDINATE_ATTRIBUTES = {
    "time": {"standard_name": "time", "long_name": "time (UTC)", "axis": "T"},
    "lat": {"standard_name": "latitude", "units": "degrees_north", "axis": "Y"},
    "lon": {"standard_name": "longitude", "units": "degrees_east", "axis": "X"},
    "channel": {"long_name": "hourly variable"},
    "static_channel": {"long_name": "variable that does not change with time"},
}
"""CF attributes by coordinate."""
