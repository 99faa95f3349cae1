"""Recognition of axes by standard name, units or name; `aqtopo.data.coordinates` has their normal form."""

from collections.abc import Hashable

import numpy as np
import xarray as xr

from aqtopo.data.coordinates import (
    AXES,
    STANDARD_NAMES,
    check_no_radians,
    with_degrees,
    with_lead_times,
    with_times,
)
from aqtopo.refusal import raise_input_error

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

COORDINATE_NAMES = frozenset(name for names in _NAMES.values() for name in names)
"""All names in lower case."""


def normalise_axes(dataset: xr.Dataset, source: str, *, keep_direction: bool = False) -> xr.Dataset:
    """Return the dataset with the coordinates of `AXES` in normal form.

    Curvilinear latitudes and longitudes keep their dimensions.

    Args:
        dataset: dataset in memory or lazy.
        source: its name in messages.
        keep_direction: a latitude or longitude that is monotonic and has no jump keeps its direction, and a
            longitude its convention.

    Raises:
        ValueError: an axis is ambiguous, torn, repeated, irregular, or without usable units.
    """
    found_by_name = [name for name in dataset.data_vars if str(name).lower() in COORDINATE_NAMES]
    dataset = dataset.set_coords(found_by_name)
    found = {axis: _find(dataset, axis, source) for axis in AXES}
    _resolve_times(dataset, found)
    dataset = _rename(dataset, found, source)
    for axis in ("init_time", "time"):
        if axis in dataset.coords:
            dataset = with_times(dataset, axis, source)
    if "lead_time" in dataset.coords:
        dataset = with_lead_times(dataset, source)
    for axis in ("lat", "lon"):
        if axis in dataset.coords and dataset[axis].ndim < 2:
            dataset = with_degrees(dataset, axis, source, keep_direction)
    check_no_radians(dataset, source)
    return dataset


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
    by_standard_name = [n for n in dataset.cf.standard_names.get(STANDARD_NAMES[axis], []) if n in coords]
    by_attributes: list[Hashable] = []
    if axis in ("lat", "lon"):
        by_attributes = list(dataset.cf.coordinates.get(STANDARD_NAMES[axis], []))
    lower = {str(name).lower(): name for name in dataset.coords}
    by_name = [
        [lower[name]] for name in _NAMES[axis] if name in lower and _may_be(dataset[lower[name]], axis)
    ]
    return [by_standard_name, by_attributes, *by_name]


def _may_be(coordinate: xr.DataArray, axis: str) -> bool:
    """Return whether the attributes of a coordinate with the name of an axis do not contradict it."""
    standard = coordinate.attrs.get("standard_name")
    return standard is None or standard == STANDARD_NAMES[axis] or axis in ("init_time", "time")


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
    try:
        for name in names:
            dims = dataset[name].dims
            if len(dims) == 1 and dims[0] != name:
                if dims[0] in dataset.coords:
                    dataset = dataset.drop_vars([dims[0]])
                dataset = dataset.swap_dims({dims[0]: name})
        return dataset.rename({name: axis for name, axis in names.items() if name != axis})
    except ValueError as error:
        shown = ", ".join(f"{AXES[axis]} {name}" for name, axis in names.items())
        raise_input_error(
            source,
            f"has dimensions that cannot be told from its axes: {shown} ({error})",
            "Rename the dimensions",
        )
