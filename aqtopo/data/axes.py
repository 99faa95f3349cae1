"""Recognition of axes by standard name, units or name, and their normal form.

Latitude ascends from south to north. Longitude ascends without a jump, in -180..180 unless the grid crosses
the date line. Lead times are hours.
"""

from collections.abc import Hashable
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

_STANDARD_NAMES = {
    "init_time": "forecast_reference_time",
    "lead_time": "forecast_period",
    "time": "time",
    "lat": "latitude",
    "lon": "longitude",
}

_NAMES = {
    "init_time": (
        "init_time",
        "forecast_reference_time",
        "initial_time",
        "reference_time",
        "analysis_time",
        "base_time",
    ),
    "lead_time": (
        "lead_time",
        "prediction_timedelta",
        "step",
        "forecast_period",
        "leadtime",
        "lead",
        "forecast_hour",
        "fhour",
    ),
    "time": ("time", "valid_time", "datetime", "date"),
    "lat": ("lat", "latitude", "nav_lat", "lat2d", "xlat", "y"),
    "lon": ("lon", "longitude", "nav_lon", "lon2d", "xlong", "x"),
}
"""Names in lower case, the most specific first."""

_ADVICE_180 = (
    "Bring the longitudes to -180..180 and sort them: "
    "`d.assign_coords(lon=(d.lon + 180) % 360 - 180).sortby('lon')`"
)

Values = NDArray[np.float64]


def normalise_axes(dataset: xr.Dataset, source: str) -> xr.Dataset:
    """Return the dataset with the coordinates of `AXES` in normal form.

    Curvilinear latitudes and longitudes keep their dimensions.

    Raises:
        ValueError: an axis is ambiguous, torn, repeated, irregular, or without usable units.
    """
    known = {name for names in _NAMES.values() for name in names}
    dataset = dataset.set_coords([name for name in dataset.data_vars if str(name).lower() in known])
    found = {axis: _find(dataset, axis, source) for axis in AXES}
    _resolve_times(dataset, found)
    dataset = _rename(dataset, found, source)
    for axis in ("init_time", "time"):
        if axis in dataset.coords:
            dataset = _with_times(dataset, axis, source)
    if "lead_time" in dataset.coords:
        dataset = _with_lead_times(dataset, source)
    for axis in ("lat", "lon"):
        if axis in dataset.coords and dataset[axis].ndim < 2:
            dataset = _with_degrees(dataset, axis, source)
    return dataset


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
            _ADVICE_180 + ". If cells are missing, give a file with all of them"
            if axis == "lon"
            else "Give a file without missing rows",
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


def _find(dataset: xr.Dataset, axis: str, source: str) -> Hashable | None:
    """Return the coordinate of an axis: by its standard name, else its units, else its name."""
    for candidates in _candidates(dataset, axis):
        for fits in (
            lambda c: c.dims == (c.name,),
            lambda c: c.ndim == 1,
            lambda c: c.ndim == 0,
            lambda _: True,
        ):
            best = [name for name in candidates if fits(dataset[name])]
            if len(best) > 1:
                raise_input_error(
                    source,
                    f"has more than one {AXES[axis]}: {', '.join(map(str, best))}",
                    "Drop all but one with `d.drop_vars`",
                )
            if best:
                return best[0]
    return None


def _candidates(dataset: xr.Dataset, axis: str) -> list[list[Hashable]]:
    import cf_xarray  # noqa: F401  (0.1 s; it registers the accessor `cf`)

    coords = set(dataset.coords)
    by_standard_name = [n for n in dataset.cf.standard_names.get(_STANDARD_NAMES[axis], []) if n in coords]
    by_attributes: list[Hashable] = []
    if axis in ("lat", "lon"):
        by_attributes = list(dataset.cf.coordinates.get(_STANDARD_NAMES[axis], []))
    lower = {str(name).lower(): name for name in dataset.coords}
    by_name = [
        [lower[name]] for name in _NAMES[axis] if name in lower and _may_be(dataset[lower[name]], axis)
    ]
    return [by_standard_name, by_attributes, *by_name]


def _may_be(coordinate: xr.DataArray, axis: str) -> bool:
    """Return whether the attributes of a coordinate with the name of an axis do not contradict it."""
    standard = coordinate.attrs.get("standard_name")
    return standard is None or standard == _STANDARD_NAMES[axis] or axis in ("init_time", "time")


def _resolve_times(dataset: xr.Dataset, found: dict[str, Hashable | None]) -> None:
    """Tell initial from valid times: a `time` that does not vary with lead time is the initial time."""
    init, lead, time = (found[axis] for axis in ("init_time", "lead_time", "time"))
    if init is not None and init == time:
        found["time"] = time = None
    if lead is None:
        return
    scalar = dataset[lead].ndim == 0 and dataset[lead].dtype.kind in "iufm"
    if init is None and scalar and not float(dataset[lead].astype(np.float64)):
        found["lead_time"] = None  # an analysis
        return
    if init is None and time is not None and not set(dataset[time].dims) & set(dataset[lead].dims):
        found["init_time"] = time
    if found["init_time"] is not None and dataset[found["init_time"]].ndim < 2:
        found["time"] = None


def _rename(dataset: xr.Dataset, found: dict[str, Hashable | None], source: str) -> xr.Dataset:
    """Give the found coordinates their names in `AXES`; other coordinates of these names are dropped."""
    names = {name: axis for axis, name in found.items() if name is not None}
    dataset = dataset.drop_vars([axis for axis in AXES if axis in dataset.coords and axis not in names])
    for axis in AXES:
        if axis in dataset.data_vars and axis not in names:
            raise_input_error(source, f"has the variable {axis}, which is no {AXES[axis]}", "Rename it")
    lat, lon = (found[axis] for axis in ("lat", "lon"))
    if None not in (lat, lon) and dataset[lat].ndim == 1 and dataset[lat].dims == dataset[lon].dims:
        raise_input_error(
            source,
            f"has {lat} and {lon} on the dimension {dataset[lat].dims[0]}: a list of points, not a grid",
            "Give fields on a latitude-longitude grid",
        )
    for name in names:
        dims = dataset[name].dims
        if len(dims) == 1 and dims[0] != name:
            if dims[0] in dataset.coords:
                dataset = dataset.drop_vars([dims[0]])
            dataset = dataset.swap_dims({dims[0]: name})
    return dataset.rename({name: axis for name, axis in names.items() if name != axis})


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


def _with_times(dataset: xr.Dataset, axis: str, source: str) -> xr.Dataset:
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


def _with_lead_times(dataset: xr.Dataset, source: str) -> xr.Dataset:
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


def _with_degrees(dataset: xr.Dataset, axis: str, source: str) -> xr.Dataset:
    """Return the dataset with a latitude or longitude in degrees, ascending, without a jump."""
    given = dataset[axis]
    units = str(given.attrs.get("units", "degrees"))
    try:
        if not units.strip().lower().startswith("deg"):
            conversion(units, "radian")
            raise UnitsError(f"{units!r} are not degrees")
    except UnitsError:
        raise_input_error(
            source,
            f"has a {AXES[axis]} in {units!r} instead of degrees: it is on a projected grid",
            "Interpolate it to latitudes and longitudes, or give a `units` of degrees",
        )
    if given.dtype.kind not in "iuf":
        raise_input_error(source, f"has a {AXES[axis]} of the type {given.dtype}", "Write it as numbers")
    values = np.atleast_1d(given.values.astype(np.float64))
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
        values = values[order]
    else:
        values, order = continuous_longitudes(values)
    check_steps(values, axis, source)
    attributes: dict[str, Any] = {
        "standard_name": _STANDARD_NAMES[axis],
        "units": "degrees_north" if axis == "lat" else "degrees_east",
    }
    if not given.ndim:
        return dataset.assign_coords({axis: ((), values[0], attributes)})
    return _ordered(dataset, axis, order).assign_coords({axis: (axis, values, attributes)})


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
