"""Opening of datasets from outside: NetCDF or zarr, decoded, with the axes of `aqtopo`.

`open_outside` returns a lazy dataset with the coordinates `init_time`, `lead_time` [h], `time`, `lat` and
`lon`, as far as the file has them. `aqtopo.data.axes` recognises them; `aqtopo.data.channels` reads variables
in the units of `aqtopo.variables`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import xarray as xr

from aqtopo.data.axes import COORDINATE_NAMES, normalise_axes
from aqtopo.data.coordinates import AXES, GRID_TOLERANCE_DEG
from aqtopo.data.file_formats import check_sizes, engine_of, refuse_unreadable
from aqtopo.data.missing import ZARR_ARRAYS, lost_coordinate, restore_fill_values, zarr_arrays
from aqtopo.data.names import find_variable
from aqtopo.data.units import UnitsError, conversion
from aqtopo.refusal import READ_ERRORS, raise_input_error
from aqtopo.variables import VARIABLES, Variable

CALENDARS = ("standard", "gregorian", "proleptic_gregorian")

_COPY_AGAIN = "Copy the store again from its source"

_PACKING = ("scale_factor", "add_offset", "_FillValue", "missing_value", "_Unsigned")
"""Attributes that xarray moves to `encoding` when it decodes."""


_TEXTS = ("standard_name", "units", "long_name", "axis", "positive", "calendar", "_CoordinateAxisType")
"""Attributes that are texts."""


def open_outside(paths: str | Path | Sequence[str | Path], variables: Sequence[Variable] = ()) -> xr.Dataset:
    """Open a file, or several that follow each other in time, as one lazy dataset.

    Args:
        paths: NetCDF files or zarr stores. Each is decoded on its own; their times must differ.
        variables: those to find in each of several files, which may name them differently.

    Returns:
        Dataset with the coordinates `init_time`, `lead_time` [h], `time` [UTC], `lat` and `lon` [degrees], as
        far as the files have them; variables keep their names and units.

    Raises:
        ValueError: a file is missing, damaged, undecoded, or has axes that are not understood.
    """
    files = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    if not files:
        raise ValueError("No file is given. Name at least one NetCDF file or zarr store.")
    # Chunks make the joined dataset lazy.
    opened = [normalise(_open(file, {} if len(files) > 1 else None), str(file)) for file in files]
    return opened[0] if len(files) == 1 else _join(opened, [str(file) for file in files], variables)


def normalise(dataset: xr.Dataset, source: str, *, keep_direction: bool = False) -> xr.Dataset:
    """Return an open dataset with the axes of `aqtopo` and without the encodings of its source.

    Args:
        dataset: dataset in memory or lazy.
        source: its name in messages; kept in `encoding["source"]`.
        keep_direction: as `normalise_axes`.

    Raises:
        ValueError: it is undecoded, or has axes that are not understood.
    """
    check_decoded(dataset, source)
    folders = zarr_arrays(dataset)
    if folders and (lost := lost_coordinate(Path(dataset.encoding["source"]), COORDINATE_NAMES)):
        raise_input_error(source, lost, _COPY_AGAIN)
    plain = restore_fill_values(dataset).drop_encoding()
    for name, folder in folders.items():
        plain[name].attrs[ZARR_ARRAYS] = [folder]
    normal = normalise_axes(plain, source, keep_direction=keep_direction)
    normal.encoding["source"] = source
    return normal


def check_decoded(dataset: xr.Dataset, source: str) -> None:
    """Refuse packed values, undeclared times and calendars with other years than the civil one.

    Raises:
        ValueError: the dataset is undecoded, or its times are not those of the standard calendar in UTC.
    """
    for name, variable in dataset.variables.items():
        packed = [key for key in _PACKING if key in variable.attrs]
        if packed:
            raise_input_error(
                source,
                f"has the undecoded variable {name}: {packed[0]} = {variable.attrs[packed[0]]} is among its "
                "attributes",
                "Open it with xarray's defaults (mask_and_scale=True), or decode it with `xr.decode_cf`",
            )
        if variable.dtype.kind in "iuf" and " since " in str(variable.attrs.get("units", "")):
            raise_input_error(
                source,
                f"has the undecoded time {name}: numbers in {variable.attrs['units']!r}",
                "Open it with xarray's defaults (decode_times=True), or decode it with `xr.decode_cf`",
            )
        if (calendar := _calendar(variable)) not in CALENDARS:
            _refuse_calendar(source, name, calendar)
        zone = getattr(variable.dtype, "tz", None) or _first(variable, "tzinfo")
        if zone is not None:
            raise_input_error(
                source,
                f"has times with a time zone in {name} ({zone})",
                "Convert them to UTC: `index.tz_convert('UTC').tz_localize(None)` in pandas",
            )


def _open(path: Path, chunks: dict[str, int] | None) -> xr.Dataset:
    engine = engine_of(path)
    options: dict[str, Any] = {"consolidated": False} if engine == "zarr" else {}
    if engine == "netcdf4":
        check_sizes(path)
    try:
        lost = lost_coordinate(path, COORDINATE_NAMES) if engine == "zarr" else None
    except READ_ERRORS as error:
        refuse_unreadable(path, error)
    if lost:  # xarray would decode what zarr reads in their place
        raise_input_error(str(path), lost, _COPY_AGAIN)
    try:
        # Times are decoded below, after a look at their calendars: xarray takes noleap in silence.
        dataset = xr.open_dataset(
            path, engine=engine, chunks=chunks, decode_times=False, decode_timedelta=False, **options
        )
    except READ_ERRORS as error:
        refuse_unreadable(path, error)
    for name, variable in dataset.variables.items():
        for key in [key for key in _TEXTS if not isinstance(variable.attrs.get(key, ""), str)]:
            del variable.attrs[key]  # zarr's attributes may be of any type
        if " since " in str(variable.attrs.get("units", "")):
            calendar = str(variable.attrs.get("calendar", "standard")).lower()
            if calendar not in CALENDARS:
                _refuse_calendar(str(path), name, calendar)
    try:
        return xr.decode_cf(dataset, mask_and_scale=False, decode_timedelta=False)
    except READ_ERRORS as error:
        raise_input_error(
            str(path),
            f"has times that cannot be decoded ({str(error).split('. Try')[0]})",
            "Write them in hours since a date, in the standard calendar",
        )


def _with_common_names(
    datasets: Sequence[xr.Dataset], files: Sequence[str], variables: Sequence[Variable]
) -> list[xr.Dataset]:
    """Give a variable that has different names in the files its short name.

    Surface pressure and temperature, which ratios of masses need, may be absent.
    """
    common = list(datasets)
    for variable in {v.name: v for v in (VARIABLES["psfc"], VARIABLES["temp"], *variables)}.values():
        try:
            names = [find_variable(d, variable, file) for d, file in zip(common, files, strict=True)]
        except ValueError:
            if variable in variables:
                raise
            continue
        if len(set(names)) > 1:
            common = [d.rename({name: variable.name}) for d, name in zip(common, names, strict=True)]
    return common


def _join(datasets: Sequence[xr.Dataset], files: Sequence[str], variables: Sequence[Variable]) -> xr.Dataset:
    """Concatenate along the initial times, or the times; refuse other grids and times that two files have."""
    axis = next((name for name in ("init_time", "time") if name in datasets[0].coords), None)
    if axis is None:
        raise_input_error(
            files[0], "has no time axis along which files could be joined", "Give a single file"
        )
    datasets = _with_common_names(datasets, files, variables)
    first = datasets[0]
    known: dict[Any, str] = {}
    shared = [name for name in first.data_vars if all(name in other for other in datasets)]
    pieces = []
    for dataset, file in zip(datasets, files, strict=True):
        if axis not in dataset.coords:
            raise_input_error(file, f"has no {axis}, and {files[0]} has", "Give files of the same form")
        if axis not in dataset.dims:
            dataset = dataset.expand_dims(axis)
        for name in ("lat", "lon", "lead_time"):
            _check_same(name, first, dataset, files[0], file)
        for time in dataset[axis].values:
            if time in known:
                raise_input_error(
                    file,
                    f"has the {axis} {np.datetime_as_string(time, 'm')}, and {known[time]} has it too",
                    "Give files whose times do not overlap",
                )
        known.update(dict.fromkeys(dataset[axis].values, file))
        aligned = dataset.assign_coords(
            {name: first[name].variable for name in ("lat", "lon") if name in first.coords}
        )
        pieces.append(_in_units_of(first, aligned[shared], file))
    joined = xr.concat(
        pieces,
        axis,
        data_vars="minimal",
        coords="minimal",
        compat="override",
        join="override",
        combine_attrs="override",
    ).sortby(axis)
    for array in joined.data_vars.values():
        folders = [folder for piece in pieces for folder in piece[array.name].attrs.get(ZARR_ARRAYS, [])]
        array.attrs |= {ZARR_ARRAYS: folders} if folders else {}
    joined.encoding["source"] = f"{files[0]} and {len(files) - 1} more"
    return joined


def _check_same(name: str, first: xr.Dataset, other: xr.Dataset, first_file: str, file: str) -> None:
    one, two = (d[name].values if name in d.coords else np.array([]) for d in (first, other))
    if one.shape != two.shape or not np.allclose(one, two, rtol=0, atol=GRID_TOLERANCE_DEG):
        raise_input_error(
            file, f"has another {AXES[name]} axis than {first_file}", "Bring the files to one grid first"
        )


def _in_units_of(first: xr.Dataset, dataset: xr.Dataset, file: str) -> xr.Dataset:
    """Convert variables whose units differ from the first file's: joined arrays have one attribute."""
    converted = {}
    for name, variable in dataset.data_vars.items():
        given, wanted = (d[name].attrs.get("units") for d in (dataset, first))
        if given == wanted:
            continue
        try:
            change = conversion(str(given or ""), str(wanted or ""))
        except UnitsError as error:
            raise_input_error(file, f"has {name} in {given!r}, and the first file in {wanted!r}", f"{error}")
        converted[name] = change(variable).assign_attrs(variable.attrs | {"units": wanted})
    return dataset.assign(converted)


def _calendar(variable: xr.Variable) -> str:
    return str(_first(variable, "calendar") or "standard").lower()


def _first(variable: xr.Variable, attribute: str) -> Any:
    """Return an attribute of the first element of an object array, such as cftime's calendar."""
    if variable.dtype != object or variable.size == 0 or variable.ndim > 1:
        return None
    return getattr(np.asarray(variable.values).reshape(-1)[0], attribute, None)


def _refuse_calendar(source: str, name: object, calendar: str) -> NoReturn:
    raise_input_error(
        source,
        f"has {name} in the calendar {calendar!r}; only {', '.join(CALENDARS)} are read",
        "Convert it with xarray's `dataset.convert_calendar('standard')`",
    )
