"""Property tests of the reader: a harmless change of form is read alike, a harmful one refused by name."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from aqtopo.data.channels import read_channel
from aqtopo.data.outside import normalise, open_outside
from aqtopo.variables import VARIABLES

EXAMPLES = int(os.environ.get("AQTOPO_FUZZ_EXAMPLES", "0"))
"""Draws of each test; 0 is CI's 200, which are the same every time."""

DRAWS = settings(
    max_examples=EXAMPLES or 200,
    derandomize=not EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

door_draws = settings(DRAWS, max_examples=EXAMPLES or 20)
"""Draws for what lies behind the reader."""

LEVELS = {
    "pm25": (1.0, 300.0), "co": (100.0, 3000.0), "o3": (5.0, 200.0), "temp": (250.0, 310.0),
    "psfc": (6e4, 1.02e5), "rh": (5.0, 100.0), "u": (-20.0, 20.0),
    "elevation": (-100.0, 5000.0), "population": (0.0, 1e4),
}  # fmt: skip

UNITS: dict[str, list[tuple[str, float, float]]] = {
    "ug m-3": [
        *((units, 1.0, 0.0) for units in ("ug m-3", "ug/m3", "µg m-3", "μg/m³", "ug m**-3", "ug m-3 ")),
        ("microgram m-3", 1.0, 0.0),
        *((units, 1e-9, 0.0) for units in ("kg m-3", "kg m**-3", "kg/m^3")),
        *((units, 1e-3, 0.0) for units in ("mg m-3", "mg/m3", "milligrams per cubic meter")),
    ],
    "K": [("K", 1.0, 0.0), ("kelvin", 1.0, 0.0), *((u, 1.0, -273.15) for u in ("degC", "C", "Celsius"))],
    "Pa": [("Pa", 1.0, 0.0), *((units, 0.01, 0.0) for units in ("hPa", "mbar", "mb"))],
    "%": [("%", 1.0, 0.0), ("percent", 1.0, 0.0), ("1", 0.01, 0.0), ("fraction", 0.01, 0.0)],
    "m s-1": [("m s-1", 1.0, 0.0), ("m/s", 1.0, 0.0), ("m s**-1", 1.0, 0.0), ("km/h", 3.6, 0.0)],
    "m": [
        ("m", 1.0, 0.0), ("metres", 1.0, 0.0), ("gpm", 1.0, 0.0), ("km", 1e-3, 0.0), ("ft", 1 / 0.3048, 0.0),
        ("m**2 s**-2", 9.80665, 0.0), ("gpdm", 0.1, 0.0),
    ],
    "km-2": [("km-2", 1.0, 0.0), ("persons/km2", 1.0, 0.0), ("m-2", 1e-6, 0.0)],
}  # fmt: skip
"""Spellings, with the factor and offset from the variable's units."""

NAMES = {
    "pm25": ["pm25", "pm2p5", "PM2.5"], "co": ["co", "CO"], "o3": ["o3", "O3"], "temp": ["temp", "t2m", "T2"],
    "psfc": ["psfc", "sp", "PSFC"], "rh": ["rh", "RH"], "u": ["u", "u10", "10u"],
    "pm10": ["pm10", "PM10"], "so2": ["so2", "SO2"], "no2": ["no2", "NO2"],
    "elevation": ["elevation", "z", "height_m"], "population": ["population", "pop", "population_density"],
    "lat": ["lat", "latitude", "y", "Latitude", "rows"], "lon": ["lon", "longitude", "x", "LON", "columns"],
    "time": ["time", "valid_time", "Time"],
    "init_time": ["init_time", "forecast_reference_time", "time"],
    "lead_time": ["lead_time", "prediction_timedelta", "step", "forecast_period"],
}  # fmt: skip

STANDARD_NAMES = {
    "lat": "latitude", "lon": "longitude", "time": "time", "init_time": "forecast_reference_time",
    "lead_time": "forecast_period", "elevation": "surface_altitude",
}  # fmt: skip
STANDARD_NAMES |= {n: v.standard_name for n, v in VARIABLES.items() if n in NAMES and v.standard_name}


@dataclass
class Form:
    """A dataset, its present names by the usual ones, and its rounding as a part of each range."""

    dataset: xr.Dataset
    variables: list[str]
    names: dict[str, str]
    rounding: float = 1e-6
    encoding: dict[str, dict[str, Any]] = field(default_factory=dict)

    def rename(self, old: str, new: str) -> None:
        if new not in self.dataset.variables and new not in self.dataset.dims:
            self.dataset = self.dataset.rename({self.names[old]: new})
            self.names[old] = new

    def write(self, path: Path, version: int | None) -> Path:
        """Write NetCDF, or zarr of a version; return the path."""
        if version is None:
            self.dataset.to_netcdf(path, encoding=self.encoding)
        else:
            self.dataset.to_zarr(path, zarr_format=version, encoding=self.encoding)
        return path


Draw = Callable[[st.SearchStrategy[Any]], Any]
Change = Callable[[Form, Draw], None]


@st.composite
def datasets(draw: Draw) -> xr.Dataset:
    """Draw hourly, forecast or constant fields on a small grid anywhere, some cells missing."""
    kind = draw(st.sampled_from(["hours", "forecasts", "constant"]))
    rows, columns = draw(st.integers(2, 5)), draw(st.integers(3, 8))
    step = draw(st.sampled_from([0.25, 0.4, 1.0, 2.5]))
    lat = draw(st.integers(-60, 60)) + step * np.arange(rows)
    lon = draw(st.sampled_from([70.0, 100.5, -3.0, 177.0, -180.0, 0.0])) + step * np.arange(columns)
    constant = ["elevation", "population"]
    known = constant if kind == "constant" else [name for name in LEVELS if name not in constant]
    variables = draw(st.lists(st.sampled_from(known), min_size=1, max_size=3, unique=True))
    sizes = {"lat": rows, "lon": columns}
    coords: dict[str, Any] = {"lat": lat, "lon": lon}
    start = np.datetime64("2016-02-28", "ns") + draw(st.integers(0, 50)) * np.timedelta64(1, "h")
    if kind == "hours":
        sizes = {"time": draw(st.integers(1, 4))} | sizes
        coords["time"] = start + np.arange(sizes["time"]) * np.timedelta64(1, "h")
    if kind == "forecasts":
        sizes = {"init_time": draw(st.integers(1, 3)), "lead_time": draw(st.integers(1, 3))} | sizes
        coords["init_time"] = start + np.arange(sizes["init_time"]) * np.timedelta64(24, "h")
        coords["lead_time"] = ("lead_time", [12.0, 24.0, 96.0][: sizes["lead_time"]], {"units": "hours"})
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    arrays = {}
    for name in variables:
        values = rng.uniform(*LEVELS[name], tuple(sizes.values())).astype(np.float32)
        values[rng.random(values.shape) < draw(st.sampled_from([0.0, 0.2]))] = np.nan
        values.flat[0] = LEVELS[name][0] + 1.0
        arrays[name] = (tuple(sizes), values, {"units": VARIABLES[name].units})
    return xr.Dataset(arrays, coords=coords)


# Harmless changes.


def change_units(form: Form, draw: Draw) -> None:
    for name in form.variables:
        array = form.dataset[form.names[name]]
        units, factor, offset = draw(st.sampled_from(UNITS[VARIABLES[name].units]))
        if array.attrs["units"] == VARIABLES[name].units:
            changed = (array.astype(np.float64) * factor + offset).assign_attrs(
                array.attrs | {"units": units}
            )
            form.dataset[form.names[name]] = changed


def change_names(form: Form, draw: Draw) -> None:
    for usual in draw(st.permutations(sorted(form.names))):
        new = draw(st.sampled_from([*NAMES[usual], f"any_{usual}"]))
        if new == "time" and "lead_time" not in form.names and usual == "init_time":
            continue
        form.rename(usual, new)
        if form.names[usual] not in NAMES[usual][:-1] or usual in form.variables:
            standard = STANDARD_NAMES.get(usual)
            if standard is None:
                form.rename(usual, usual)
            else:
                form.dataset[form.names[usual]].attrs["standard_name"] = standard


def change_order(form: Form, draw: Draw) -> None:
    for usual in ("lat", "lon", "time", "init_time", "lead_time"):
        if usual in form.names:
            axis = form.names[usual]
            orders = st.sampled_from([slice(None), slice(None, None, -1)]) | st.permutations(
                range(form.dataset.sizes[axis])
            )
            form.dataset = form.dataset.isel({axis: draw(orders)})


def change_dimensions(form: Form, draw: Draw) -> None:
    form.dataset = form.dataset.transpose(*draw(st.permutations(sorted(map(str, form.dataset.dims)))))


def change_longitudes(form: Form, draw: Draw) -> None:
    axis = form.names["lon"]
    lon = form.dataset[axis]
    start = draw(st.sampled_from([-180.0, 0.0]))
    turned = (lon - start) % 360 + start
    form.dataset = form.dataset.assign_coords({axis: turned.assign_attrs(lon.attrs)})
    if draw(st.booleans()):
        form.dataset = form.dataset.sortby(axis)


def change_types(form: Form, draw: Draw) -> None:
    kind = draw(st.sampled_from(["f4", "f8", ">f4"]))
    for name in form.variables:
        form.dataset[form.names[name]] = form.dataset[form.names[name]].astype(kind)
    for usual in ("lat", "lon"):
        axis = form.dataset[form.names[usual]]
        kept = axis.astype("f4" if draw(st.booleans()) else "f8").assign_attrs(axis.attrs)
        form.dataset = form.dataset.assign_coords({form.names[usual]: kept})


def add_one_level(form: Form, draw: Draw) -> None:
    level = draw(st.sampled_from(["level", "height", "number", "bottom-top"]))
    if level not in form.dataset.dims and level not in form.dataset.variables:
        form.dataset = form.dataset.expand_dims({level: 1 if draw(st.booleans()) else [2.0]})


def add_others(form: Form, draw: Draw) -> None:
    extra = draw(st.sampled_from(["crs", "bounds", "levels", "text"]))
    lat = form.names["lat"]
    added: dict[str, Any] = {
        "crs": ((), 1),
        "bounds": ((lat, "nv"), np.zeros((form.dataset.sizes[lat], 2))),
        "levels": (("plev", lat), np.zeros((3, form.dataset.sizes[lat])), {"units": "Pa"}),
        "text": (("note",), np.array(["a", "b"])),
    }
    form.dataset = form.dataset.assign({f"other_{extra}": added[extra]})


def change_leads(form: Form, draw: Draw) -> None:
    if "lead_time" not in form.names:
        return
    axis = form.dataset[form.names["lead_time"]]
    if axis.attrs.get("units") != "hours":
        return
    attributes = {key: value for key, value in axis.attrs.items() if key != "units"}
    units, factor = draw(
        st.sampled_from([("days", 1 / 24), ("seconds", 3600), ("min", 60), ("timedelta", 0)])
    )
    if units == "timedelta":
        values = (axis.values * 3600e9).astype("m8[ns]")
        coordinate: Any = (axis.name, values, attributes)
    else:
        coordinate = (axis.name, axis.values * factor, attributes | {"units": units})
    form.dataset = form.dataset.assign_coords({axis.name: coordinate})


HARMLESS: list[Change] = [
    change_units, change_names, change_order, change_dimensions, change_longitudes, change_types,
    add_one_level, add_others, change_leads,
]  # fmt: skip


def pack(form: Form, draw: Draw) -> None:
    for name in form.variables:
        array = form.dataset[form.names[name]]
        low, high = float(array.min()), float(array.max())
        kind, levels = draw(st.sampled_from([("int16", 6.5e4), ("int32", 4e9), ("uint8", 0.0)]))
        if not levels:
            continue
        smallest = np.iinfo(kind).min
        scale = max((high - low) / levels, abs(low) / levels, 1e-30)
        form.encoding[form.names[name]] = {
            "dtype": kind, "scale_factor": scale, "add_offset": (high + low) / 2, "_FillValue": smallest,
        }  # fmt: skip
        form.rounding = max(form.rounding, 2e-5 if kind == "int16" else 2e-6)


def written(form: Form, draw: Draw, folder: Path) -> xr.Dataset:
    """Write the dataset in some format, in one file or two, and open it with the reader."""
    kind = draw(st.sampled_from(["memory", "chunked", "nc", "classic", "zarr2", "zarr3", "two files"]))
    note(f"{kind}, {form.encoding}, {form.dataset}")
    plain = form.dataset.drop_encoding()
    if kind == "memory":
        return normalise(plain, "memory")
    if kind == "chunked":
        chunks = {axis: draw(st.integers(1, size)) for axis, size in plain.sizes.items()}
        return normalise(plain.chunk(chunks), "chunked")
    if draw(st.booleans()):
        pack(form, draw)
    for usual in ("time", "init_time"):
        if usual in form.names:
            units = draw(
                st.sampled_from(
                    ["hours since 1900-01-01", "days since 1970-01-01", "seconds since 2016-01-01"]
                )
            )
            form.encoding[form.names[usual]] = {"units": units, "dtype": draw(st.sampled_from(["f8", "i8"]))}
            if "days" in units or kind == "classic":
                form.encoding[form.names[usual]]["dtype"] = "f8"
    axis = form.names.get("time", form.names.get("init_time"))
    parts = [plain]
    if kind == "two files" and axis in plain.dims and plain.sizes[axis] > 1:
        cut = draw(st.integers(1, plain.sizes[axis] - 1))
        parts = [plain.isel({axis: slice(cut, None)}), plain.isel({axis: slice(None, cut)})]
    paths = []
    for number, part in enumerate(parts):
        path = folder / f"{number}.{'zarr' if 'zarr' in kind else 'nc'}"
        if "zarr" in kind:
            encoding = {} if kind == "zarr3" and ">f4" in str(part.dtypes) else form.encoding
            part.to_zarr(path, zarr_format=int(kind[4]), consolidated=draw(st.booleans()), encoding=encoding)
        else:
            classic: Any = "NETCDF3_64BIT" if kind == "classic" else "NETCDF4"
            part.to_netcdf(path, format=classic, engine="netcdf4", encoding=form.encoding)
        paths.append(path)
    return open_outside(paths if len(paths) > 1 else paths[0])


def drawn_form(dataset: xr.Dataset, draw: Draw, changes: list[Change]) -> Form:
    variables = [str(name) for name in dataset.data_vars]
    names = {name: name for name in [*variables, *map(str, dataset.dims)]}
    form = Form(dataset.copy(deep=True), variables, names)
    for change in changes:
        note(change.__name__)
        change(form, draw)
    return form


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@DRAWS
@given(dataset=datasets(), data=st.data(), changes=st.lists(st.sampled_from(HARMLESS), max_size=6))
def test_another_form_gives_the_same_arrays(dataset: xr.Dataset, data: Any, changes: list[Change]) -> None:
    usual = normalise(dataset, "usual")
    form = drawn_form(dataset, data.draw, changes)
    with tempfile.TemporaryDirectory() as folder:
        opened = written(form, data.draw, Path(folder))
        for name in form.variables:
            expected = read_channel(usual, VARIABLES[name]).values
            found = read_channel(opened, VARIABLES[name]).values
            low, high = LEVELS[name]
            np.testing.assert_allclose(
                found, expected, rtol=3e-6, atol=form.rounding * (high - low + abs(low)), err_msg=name
            )
            assert found.dims == expected.dims
            for axis in ("lat", "lon", "time", "init_time", "lead_time"):
                if axis in expected.dims:
                    difference = found[axis].values - expected[axis].values
                    zero = np.timedelta64(0, "ns") if difference.dtype.kind == "m" else 0.0
                    tolerance = np.timedelta64(0, "ns") if difference.dtype.kind == "m" else 1e-4
                    assert (abs(difference - zero) <= tolerance).all()


# Harmful changes. Each returns what the message must name.

Harm = Callable[[Form, Draw], str]


def some_variable(form: Form, draw: Draw) -> tuple[str, xr.DataArray]:
    name = draw(st.sampled_from(form.variables))
    return name, form.dataset[form.names[name]]


def one_cell(form: Form, draw: Draw, value: float) -> str:
    _, array = some_variable(form, draw)
    kept = array.copy()
    place = tuple(draw(st.integers(0, size - 1)) for size in array.shape)
    kept[place] = value
    form.dataset[array.name] = kept
    return rf"{array.name} = .* in 1 of {array.size} values|{array.name} = .*1 of {array.size} values are far"


def fill_value(form: Form, draw: Draw) -> str:
    fills = [-9999.0, -999.0, -99.0, 9.96921e36, 1e20, -32767.0]
    if "elevation" in form.variables:
        fills.remove(-99.0)
    return one_cell(form, draw, draw(st.sampled_from(fills)))


def impossible_value(form: Form, draw: Draw) -> str:
    return one_cell(form, draw, draw(st.sampled_from([1e7, -1e6, 3e10])))


def kilograms_called_micrograms(form: Form, draw: Draw) -> str:
    names = [name for name in form.variables if VARIABLES[name].pollutant]
    if not names:
        return impossible_value(form, draw)
    array = form.dataset[form.names[draw(st.sampled_from(names))]]
    form.dataset[array.name] = (array.fillna(30.0) * 1e-9).assign_attrs(array.attrs)
    return "has a mean .*: it is in other units than its `units`"


def wrong_units(form: Form, draw: Draw) -> str:
    name, array = some_variable(form, draw)
    others = [
        units for units in ("K", "Pa", "ug m-3", "m s-1", "ppb", "nonsense") if units != VARIABLES[name].units
    ]
    array.attrs["units"] = draw(st.sampled_from(others))
    return f"{array.name} in units that cannot be used: .*{array.attrs['units']}"


def no_units(form: Form, draw: Draw) -> str:
    _, array = some_variable(form, draw)
    del array.attrs["units"]
    return f"{array.name} without units.*attrs"


def packed_in_memory(form: Form, draw: Draw) -> str:
    _, array = some_variable(form, draw)
    array.attrs[draw(st.sampled_from(["scale_factor", "add_offset", "_FillValue"]))] = 2
    return f"undecoded variable {array.name}"


def packed_default_fill(form: Form, draw: Draw) -> str:
    _, array = some_variable(form, draw)
    low, high = float(array.min()), float(array.max())
    scale, offset = max((high - low) / 6e4, 1e-3), (high + low) / 2
    packed = np.round((array.fillna(offset).values - offset) / scale).astype("i2")
    place = tuple(draw(st.integers(0, size - 1)) for size in array.shape)
    packed[place] = fill = draw(st.sampled_from([-32767, -32768]))
    attributes = {**array.attrs, "scale_factor": scale, "add_offset": offset}
    form.dataset[array.name] = xr.decode_cf(
        xr.Dataset({array.name: (array.dims, packed, attributes)}), decode_coords=False
    )[array.name].variable
    return rf"{array.name} = {fill} in 1 of"


def several_levels(form: Form, draw: Draw) -> str:
    form.dataset = form.dataset.expand_dims(member=draw(st.integers(2, 3)))
    return r"further dimension member \(size"


def missing_column(form: Form, draw: Draw) -> str:
    axis = form.names["lon"]
    size = form.dataset.sizes[axis]
    # Of four columns at least, one within is left out.
    if size < 4:
        return repeated_row(form, draw)
    order = np.argsort(form.dataset[axis].values)
    lost = order[draw(st.integers(1, size - 2))]
    form.dataset = form.dataset.isel({axis: [i for i in range(size) if i != lost]})
    return "jump in longitude|irregular steps in longitude"


def repeated_row(form: Form, draw: Draw) -> str:
    axis = draw(st.sampled_from(["lat", "lon"]))
    size = form.dataset.sizes[form.names[axis]]
    again = draw(st.integers(0, size - 1))
    form.dataset = form.dataset.isel({form.names[axis]: [*range(size), again]})
    return "(latitude|longitude) .* more than once"


def no_axis(form: Form, draw: Draw) -> str:
    axis = draw(st.sampled_from(["lat", "lon"]))
    form.dataset = form.dataset.drop_vars(form.names[axis])
    return {"lat": "latitude", "lon": "longitude"}[axis]


def other_calendar(form: Form, draw: Draw) -> str:
    axis = next((form.names[a] for a in ("time", "init_time") if a in form.names), None)
    if axis is None:
        return no_axis(form, draw)
    calendar = draw(st.sampled_from(["noleap", "360_day"]))
    times = xr.date_range("2016-02-01", periods=form.dataset.sizes[axis], calendar=calendar, use_cftime=True)
    form.dataset = form.dataset.assign_coords({axis: times})
    return calendar


def two_candidates(form: Form, draw: Draw) -> str:
    name, array = some_variable(form, draw)
    standard = VARIABLES[name].standard_name
    if standard is None:
        return no_units(form, draw)
    described = array.assign_attrs(standard_name=standard)
    form.dataset = form.dataset.drop_vars(str(array.name)).assign(first_one=described, second_one=described)
    form.names[name] = "first_one"
    return "first_one, second_one"


def variable_lost(form: Form, draw: Draw) -> str:
    name, array = some_variable(form, draw)
    form.dataset = form.dataset.drop_vars(str(array.name)).assign(unrelated=array.drop_attrs(deep=False))
    return f"has no {name}"


HARMFUL: list[Harm] = [
    fill_value, impossible_value, kilograms_called_micrograms, wrong_units, no_units, packed_in_memory,
    packed_default_fill,
    several_levels, missing_column, repeated_row, no_axis, other_calendar, two_candidates, variable_lost,
]  # fmt: skip

FORMS: list[Change] = [change_order, change_dimensions, change_longitudes, add_one_level, add_others]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@DRAWS
@given(
    dataset=datasets(),
    data=st.data(),
    changes=st.lists(st.sampled_from(FORMS), max_size=3),
    harm=st.sampled_from(HARMFUL),
)
def test_a_harmful_change_is_refused_by_name(
    dataset: xr.Dataset, data: Any, changes: list[Change], harm: Harm
) -> None:
    form = drawn_form(dataset, data.draw, changes)
    message = harm(form, data.draw)
    note(f"{harm.__name__}: {form.dataset}")
    with pytest.raises(ValueError, match=message):
        read_all(form)


def read_all(form: Form) -> None:
    opened = normalise(form.dataset, "memory")
    for name in form.variables:
        read_channel(opened, VARIABLES[name])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@DRAWS
@given(dataset=datasets(), data=st.data(), part=st.floats(0.0, 0.999))
def test_a_part_of_a_file_is_refused(dataset: xr.Dataset, data: Any, part: float) -> None:
    kind = data.draw(st.sampled_from(["NETCDF4", "NETCDF3_CLASSIC", "NETCDF3_64BIT"]))
    with tempfile.TemporaryDirectory() as folder:
        unlimited = data.draw(
            st.sampled_from([[], *([name] for name in ("time", "init_time") if name in dataset.dims)])
        )
        dataset.to_netcdf(Path(folder, "whole"), format=kind, engine="netcdf4", unlimited_dims=unlimited)
        open_outside(Path(folder, "whole"))
        content = Path(folder, "whole").read_bytes()
        Path(folder, "part.nc").write_bytes(content[: int(part * len(content))])
        with pytest.raises(ValueError, match=r"part\.nc is (damaged or incomplete|empty|not a NetCDF file)"):
            open_outside(Path(folder, "part.nc"))
