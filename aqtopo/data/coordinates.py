"""Values of axes: times, lead times and degrees, checked and in normal form.

Latitude ascends from south to north. Longitude ascends without a jump, in -180..180 unless the grid crosses
the date line. Lead times are hours.
"""

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from aqtopo.data.units import UnitsError, conversion
from aqtopo.refusal import raise_input_error

AXES = {
    "init_time": "initial time",
    "lead_time": "lead time",
    "time": "time",
    "lat": "latitude",
    "lon": "longitude",
}
"""Coordinates of a normalised dataset, with their names in messages, in the order of dimensions."""

GRID_TOLERANCE_DEG = 1e-4
"""Tolerance of equal coordinates [degrees]; those in float32 differ by 1e-5."""

UNEVEN = 1.25
"""Ratio of neighbouring steps from which an axis is irregular; Gaussian and Mercator grids have 1.02."""

STANDARD_NAMES = {
    "init_time": "forecast_reference_time",
    "lead_time": "forecast_period",
    "time": "time",
    "lat": "latitude",
    "lon": "longitude",
}
"""CF standard names."""

Values = NDArray[np.float64]


def rows_of(values: Values, wanted: Values, period: float | None = None) -> NDArray[np.intp] | None:
    """Return the positions in `values` of the coordinates `wanted`, or None if one is absent.

    Args:
        values: (n,) coordinates of a dataset [degrees].
        wanted: (m,) coordinates of a grid [degrees].
        period: 360 for longitudes, which are compared modulo 360.
    """
    difference = wanted[:, None] - values[None, :]
    if period is not None:
        difference = (difference + period / 2) % period - period / 2
    distance = np.abs(difference)
    rows = distance.argmin(axis=1)
    return rows if np.all(distance[np.arange(wanted.size), rows] <= GRID_TOLERANCE_DEG) else None


def continuous_longitudes(lon: Values) -> tuple[Values, NDArray[np.intp]]:
    """Return ascending longitudes and their order: in -180..180, or in 0..360 if only that has no jump."""
    best: tuple[Values, NDArray[np.intp]] | None = None
    for start in (-180.0, 0.0):
        turned = np.mod(lon - start, 360.0) + start
        order = np.argsort(turned, kind="stable")
        if best is None or _largest_step(turned[order]) < _largest_step(best[0]) * 0.9:
            best = turned[order], order
    assert best is not None
    return best


def check_steps(values: Values, axis: str, source: str) -> None:
    """Refuse an ascending axis with a repeated value, a jump or irregular steps.

    Raises:
        ValueError: the fact, the place and the remedy.
    """
    steps = np.diff(values)
    if not steps.size:
        return
    repeated = np.flatnonzero(steps <= GRID_TOLERANCE_DEG / 10)
    if repeated.size:
        raise_input_error(
            source,
            f"has the {AXES[axis]} {values[repeated[0]]:g} more than once",
            f"Drop the repeated cells: `d.drop_duplicates('{axis}')`, or the last column of a cyclic grid",
        )
    middle = float(np.median(steps))
    jump = int(steps.argmax())
    if steps[jump] > 1.5 * middle and steps.size > 1:
        raise_input_error(
            source,
            f"has a jump in {AXES[axis]} from {values[jump]:g} to {values[jump + 1]:g}, "
            f"where the other steps are {middle:g}",
            f"Give a file without missing {'columns' if axis == 'lon' else 'rows'}",
        )
    ratio = steps[1:] / steps[:-1]
    uneven = np.flatnonzero((ratio > UNEVEN) | (ratio < 1 / UNEVEN))
    if uneven.size:
        place = int(uneven[0])
        raise_input_error(
            source,
            f"has irregular steps in {AXES[axis]}: {steps[place]:g} and {steps[place + 1]:g} "
            f"around {values[place + 1]:g}",
            "Interpolate it to a regular grid first",
        )


def civil_times(times: xr.CFTimeIndex, source: str) -> pd.DatetimeIndex:
    """Return cftime's times as datetime64[ns].

    Raises:
        ValueError: they are outside the years 1678 to 2262.
    """
    try:
        return times.to_datetimeindex(time_unit="ns")
    except ValueError:
        raise_input_error(
            source,
            f"has the time {times[0]}, which is outside the years 1678 to 2262",
            "Correct the reference date in the attribute `units` of the time",
        )


def with_times(dataset: xr.Dataset, axis: str, source: str) -> xr.Dataset:
    """Check times, round them to seconds (days as floats are off by microseconds), and sort them."""
    times = dataset[axis]
    if times.dims == (axis,) and isinstance(times.to_index(), xr.CFTimeIndex):
        dataset = dataset.assign_coords({axis: civil_times(times.to_index(), source)})
        times = dataset[axis]
    if times.dtype.kind != "M":
        raise_input_error(
            source,
            f"has {AXES[axis]}s of the type {times.dtype} instead of times",
            f"Give `{axis}` the attribute `units`, such as 'hours since 1970-01-01', and open it anew",
        )
    if bool(times.isnull().any()):
        raise_input_error(source, f"has a missing {AXES[axis]}", "Drop its fields, or write the time")
    dataset = dataset.assign_coords({axis: (times.dims, times.dt.round("s").values, times.attrs)})
    times = dataset[axis]
    if times.dims != (axis,):
        return dataset
    values, counts = np.unique(times.values, return_counts=True)
    if (counts > 1).any():
        raise_input_error(
            source,
            f"has the {AXES[axis]} {np.datetime_as_string(values[counts > 1][0], 'm')} more than once",
            f"Drop the repeated ones: `d.drop_duplicates('{axis}')`",
        )
    return _ordered(dataset, axis, np.argsort(times.values, kind="stable"))


def with_lead_times(dataset: xr.Dataset, source: str) -> xr.Dataset:
    """Return the dataset with lead times in hours, ascending."""
    lead = dataset["lead_time"]
    if lead.dtype.kind == "m":
        given = lead.values / np.timedelta64(1, "h")
    else:
        units = lead.attrs.get("units")
        if not isinstance(units, str) or not units.strip() or lead.dtype.kind not in "iuf":
            raise_input_error(
                source,
                f"has lead times without units (type {lead.dtype})",
                "Set the attribute `units` of the lead time, for example 'hours'",
            )
        try:
            given = conversion(units, "hours")(lead.values.astype(np.float64))
        except UnitsError as error:
            raise_input_error(source, f"has lead times in {units!r}", f"{error}")
    hours = np.round(np.asarray(given, dtype=np.float64), 6)
    if not np.isfinite(hours).all():
        raise_input_error(source, "has a missing lead time", "Drop its fields, or write the lead time")
    _, counts = np.unique(hours, return_counts=True)
    if (counts > 1).any():
        shown = ", ".join(f"{hour:g}" for hour in np.atleast_1d(hours))
        raise_input_error(source, f"has a lead time twice ({shown} h)", "Drop the repeated one")
    attributes = {"standard_name": "forecast_period", "units": "hours"}
    dataset = dataset.assign_coords(lead_time=(lead.dims, hours, attributes))
    return _ordered(dataset, "lead_time", np.argsort(hours)) if lead.ndim else dataset


def with_degrees(dataset: xr.Dataset, axis: str, source: str, keep_direction: bool = False) -> xr.Dataset:
    """Return the dataset with a latitude or longitude in degrees, ascending, without a jump.

    With `keep_direction`, an axis that is monotonic and has no jump keeps its values.
    """
    given = dataset[axis]
    if given.dtype.kind not in "iuf":
        raise_input_error(source, f"has a {AXES[axis]} of the type {given.dtype}", "Write it as numbers")
    values = np.atleast_1d(given.values.astype(np.float64))
    units = str(given.attrs.get("units", "degrees"))
    if units.strip().lower() in ("radian", "radians", "rad"):
        values = np.degrees(values)
    elif not units.strip().lower().startswith("deg"):
        raise_input_error(
            source,
            f"has a {AXES[axis]} in {units!r} instead of degrees: it is on a projected grid",
            "Interpolate it to latitudes and longitudes, or give a `units` of degrees",
        )
    limit = 90.001 if axis == "lat" else 360.001
    if not values.size or not np.isfinite(values).all() or np.abs(values).max() > limit:
        wrong = values[~(np.abs(values) <= limit)]
        raise_input_error(
            source,
            f"has the {AXES[axis]} {wrong[0] if wrong.size else 'of no cell'}, which is not within "
            f"-{limit:.0f} to {limit:.0f} degrees",
            "Correct the coordinates, and check that latitude and longitude are not exchanged",
        )
    if axis == "lat":
        order = np.argsort(values, kind="stable")
        normal = values[order]
    else:
        normal, order = continuous_longitudes(values)
    check_steps(normal, axis, source)
    if keep_direction and _has_steps_of(values, normal):
        normal, order = values, np.arange(values.size)
    attributes: dict[str, Any] = {
        "standard_name": STANDARD_NAMES[axis],
        "units": "degrees_north" if axis == "lat" else "degrees_east",
    }
    if not given.ndim:
        return dataset.assign_coords({axis: ((), normal[0], attributes)})
    return _ordered(dataset, axis, order).assign_coords({axis: (axis, normal, attributes)})


def check_no_radians(dataset: xr.Dataset, source: str) -> None:
    """Refuse axes in radians that are not declared as such.

    As degrees they would all lie in the Gulf of Guinea. A grid there has steps of a decimal fraction of a
    degree, which a grid in radians does not have.

    Raises:
        ValueError: latitudes and longitudes are those of radians.
    """
    if not all(axis in dataset.coords and dataset[axis].size > 1 for axis in ("lat", "lon")):
        return
    axes = {axis: dataset[axis].values.ravel() for axis in ("lat", "lon")}
    small = np.abs(axes["lat"]).max() <= np.pi / 2 + 1e-6 and np.abs(axes["lon"]).max() <= 2 * np.pi + 1e-6
    thousandths = np.concatenate([*axes.values()]) * 1e3
    if small and np.abs(thousandths - np.round(thousandths)).max() > 0.05:
        shown = " and ".join(f"{AXES[axis]}s {v.min():.4g} to {v.max():.4g}" for axis, v in axes.items())
        raise_input_error(
            source,
            f"has {shown}, which are radians and not degrees",
            "Convert them with `numpy.degrees`, or give both the attribute `units` = 'radian'",
        )


def _has_steps_of(values: Values, normal: Values) -> bool:
    """Return whether an axis is monotonic with the steps of its normal form, either way."""
    steps, wanted = np.diff(values), np.diff(normal)
    return any(np.allclose(steps, each, rtol=0, atol=GRID_TOLERANCE_DEG) for each in (wanted, -wanted[::-1]))


def _ordered(dataset: xr.Dataset, axis: str, order: NDArray[np.intp]) -> xr.Dataset:
    """Return the dataset in an order of an axis; as a slice, which stays lazy, where that is enough."""
    forward = np.arange(order.size)
    if np.array_equal(order, forward):
        return dataset
    if np.array_equal(order, forward[::-1]):
        return dataset.isel({axis: slice(None, None, -1)})
    return dataset.isel({axis: order})


def _largest_step(values: Values) -> float:
    return float(np.diff(values).max()) if values.size > 1 else 0.0
