"""Property tests of write_store: another form gives the same store, a harmful change is refused."""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, note
from hypothesis import strategies as st

from aqtopo.data import Store, open_store, write_store
from aqtopo.data.coordinates import rows_of
from aqtopo.data.metadata import read_metadata
from aqtopo.variables import NAME_PATTERN, RESERVED_NAMES, VARIABLES, Variable
from tests.conftest import make_tiny_dataset
from tests.data.test_outside_forms import (
    UNITS,
    Form,
    add_one_level,
    change_dimensions,
    change_names,
    door_draws,
)
from tests.data.test_write import TOO_LOW

Draw = Callable[[st.SearchStrategy[Any]], Any]
HOURS = 50


def usual() -> xr.Dataset:
    dataset = make_tiny_dataset().isel(time=slice(0, HOURS))
    del dataset.attrs["simulated"]  # NetCDF has no booleans
    return dataset


def in_other_units(dataset: xr.Dataset, draw: Draw) -> xr.Dataset:
    names = dataset["channel"].values.tolist()
    chosen = {name: draw(st.sampled_from(UNITS[VARIABLES[name].units])) for name in names}
    factor, offset = (xr.DataArray([chosen[n][i] for n in names], dims="channel") for i in (1, 2))
    fields = dataset["fields"].astype(np.float64) * factor + offset
    return dataset.assign(fields=fields.assign_attrs(channel_units={n: chosen[n][0] for n in names}))


def channels_in_another_order(dataset: xr.Dataset, draw: Draw) -> xr.Dataset:
    return dataset.isel(channel=draw(st.permutations(range(dataset.sizes["channel"]))))


def other_types(dataset: xr.Dataset, draw: Draw) -> xr.Dataset:
    return dataset.astype(draw(st.sampled_from(["f8", ">f4", ">f8"])))


def coordinates_in_float32(dataset: xr.Dataset, _: Draw) -> xr.Dataset:
    return dataset.assign_coords(lat=dataset["lat"].astype("f4"), lon=dataset["lon"].astype("f4"))


def extra(dataset: xr.Dataset, _: Draw) -> xr.Dataset:
    return dataset.assign(notes=("time", np.zeros(HOURS))).assign_coords(level=1000.0)


def foreign_encodings(dataset: xr.Dataset, _: Draw) -> xr.Dataset:
    dataset["fields"].encoding = {"dtype": "int16", "scale_factor": 3.0, "chunks": (7, 3, 5, 2), "zlib": True}
    dataset["time"].encoding = {"units": "days since 1900-01-01", "dtype": "int32"}
    return dataset


def rows_in_disorder(dataset: xr.Dataset, draw: Draw) -> xr.Dataset:
    axis = draw(st.sampled_from(["lat", "lon"]))
    # The first two cells are exchanged, so that the axis is not monotonic and keeps no direction.
    order = [1, 0, *draw(st.permutations(range(2, dataset.sizes[axis])))]
    return dataset.isel({axis: order})


def other_axes(dataset: xr.Dataset, draw: Draw) -> xr.Dataset:
    form = Form(dataset, [], {axis: axis for axis in ("lat", "lon")})
    for change in (change_names, change_dimensions, add_one_level):
        change(form, draw)
    return form.dataset


HARMLESS = [
    in_other_units,
    channels_in_another_order,
    other_types,
    coordinates_in_float32,
    extra,
    foreign_encodings,
    rows_in_disorder,
    other_axes,
]


def changed(dataset: xr.Dataset, changes: list[Any], draw: Draw) -> xr.Dataset:
    """Apply the changes, that of the names last."""
    for change in sorted(changes, key=lambda each: each is other_axes):
        note(change.__name__)
        dataset = change(dataset, draw)
    return dataset


def rows_the_other_way(dataset: xr.Dataset, draw: Draw) -> xr.Dataset:
    axis = draw(st.sampled_from(["lat", "lon"]))
    return dataset.isel({axis: slice(None, None, -1)})


def in_usual_order(store: Store, hour: int, expected: xr.DataArray) -> Any:
    """Return an hour of a store with channels and cells in the order of a dataset."""
    channels = [store.channels.index(name) for name in expected["channel"].values]
    rows = rows_of(store.lat, expected["lat"].values)
    columns = rows_of(store.lon, expected["lon"].values, 360.0)
    assert rows is not None
    assert columns is not None
    return store.read(hour)[channels][:, rows][:, :, columns]


def given_to_writer(dataset: xr.Dataset, draw: Draw, folder: Path) -> Any:
    """Return the dataset in memory, chunked, in blocks, or opened from a file."""
    kind = draw(st.sampled_from(["memory", "chunked", "blocks", "zarr2", "zarr3", "nc"]))
    note(kind)
    if kind == "chunked":
        return dataset.chunk({axis: draw(st.integers(1, size)) for axis, size in dataset.sizes.items()})
    if kind == "blocks":
        cut = draw(st.sampled_from([24, 48]))
        return [dataset.isel(time=slice(None, cut)), dataset.isel(time=slice(cut, None))]
    if kind == "memory":
        return dataset
    plain = dataset.drop_encoding()
    for array in ("fields", "static"):
        plain[array].attrs.pop("channel_units", None) if kind == "nc" else None
    if kind == "nc":
        plain.to_netcdf(folder / "given.nc")
        opened = xr.open_dataset(folder / "given.nc")
        if units := dataset["fields"].attrs.get("channel_units"):
            opened["fields"].attrs["channel_units"] = units  # NetCDF has no mappings
        return opened
    plain.to_zarr(folder / "given.zarr", zarr_format=int(kind[4]))
    return xr.open_zarr(folder / "given.zarr", chunks=draw(st.sampled_from([None, {}, {"time": 11}])))


def written(dataset: Any, folder: Path) -> Store:
    write_store(dataset, folder / "new.zarr")
    return open_store(folder / "new.zarr")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@door_draws
@given(
    data=st.data(),
    changes=st.lists(st.sampled_from([*HARMLESS, rows_the_other_way]), max_size=5, unique=True),
)
def test_another_form_gives_the_same_store(data: Any, changes: list[Any]) -> None:
    dataset = usual()
    expected = dataset["fields"]
    dataset = changed(dataset, changes, data.draw)
    with tempfile.TemporaryDirectory() as folder:
        store = written(given_to_writer(dataset, data.draw, Path(folder)), Path(folder))
        np.testing.assert_array_equal(store.times, expected["time"].values.astype("M8[h]"))
        np.testing.assert_allclose(store.static["lat2d"][:, 0], store.lat, atol=1e-4)
        np.testing.assert_allclose(store.static["lon2d"][0], store.lon, atol=1e-4)
        for hour in (0, 23, 24, HOURS - 1):
            found = in_usual_order(store, hour, expected)
            np.testing.assert_allclose(found, expected[hour], rtol=3e-6, atol=3e-5)


def fill_value(dataset: xr.Dataset, draw: Draw) -> tuple[xr.Dataset, str]:
    hour, channel = draw(st.integers(0, HOURS - 1)), draw(st.integers(0, 10))
    dataset["fields"][hour, channel, 3, 4] = draw(st.sampled_from([-9999.0, -999.0, -99.0, 1e20]))
    return dataset, f"{dataset['channel'].values[channel]} = .* in 1 of"


def packed(dataset: xr.Dataset, draw: Draw) -> tuple[xr.Dataset, str]:
    dataset["fields"].attrs[draw(st.sampled_from(["scale_factor", "add_offset", "_FillValue"]))] = 0.5
    return dataset, "undecoded variable fields"


def other_calendar(dataset: xr.Dataset, draw: Draw) -> tuple[xr.Dataset, str]:
    calendar = draw(st.sampled_from(["noleap", "360_day"]))
    times = xr.date_range("2016-02-01", periods=HOURS, freq="h", calendar=calendar)
    return dataset.assign_coords(time=times), f"calendar '{calendar}'"


def torn(dataset: xr.Dataset, draw: Draw) -> tuple[xr.Dataset, str]:
    lost = draw(st.integers(1, dataset.sizes["lon"] - 2))
    torn = dataset.drop_isel(lon=lost)
    lon = (torn["lon"].values - draw(st.floats(0.0, 360.0))) % 360
    return torn.assign_coords(lon=np.sort(lon)), "jump in longitude"


def impossible_axes(dataset: xr.Dataset, draw: Draw) -> tuple[xr.Dataset, str]:
    axis, low, high, message = draw(
        st.sampled_from(
            [("lat", 45.0, 300.0, "latitude .* not within"), ("lon", 300.0, 900.0, "longitude .* not within")]
        )
    )
    return dataset.assign_coords({axis: dataset[axis] + draw(st.floats(low, high))}), message


def radians(dataset: xr.Dataset, _: Draw) -> tuple[xr.Dataset, str]:
    axes = {axis: np.radians(dataset[axis].values) for axis in ("lat", "lon")}
    return dataset.assign_coords(axes), "which are radians"


def several_levels(dataset: xr.Dataset, draw: Draw) -> tuple[xr.Dataset, str]:
    return dataset.expand_dims(level=draw(st.integers(2, 3))), r"further dimension level \(size"


def wrong_units(dataset: xr.Dataset, draw: Draw) -> tuple[xr.Dataset, str]:
    name, units = (
        draw(st.sampled_from(["temp", "pm25", "psfc"])),
        draw(st.sampled_from(["m", "ppb", "kg kg-1"])),
    )
    dataset["fields"].attrs["channel_units"] = {name: units}
    return dataset, f"{name} in .*{units}"


def celsius_called_kelvin(dataset: xr.Dataset, _: Draw) -> tuple[xr.Dataset, str]:
    return dataset.assign(
        fields=dataset["fields"] - 273.15 * (dataset["channel"] == "temp")
    ), "temp = .*far outside"


def other_units_called_micrograms(dataset: xr.Dataset, draw: Draw) -> tuple[xr.Dataset, str]:
    name, factor = draw(st.sampled_from(TOO_LOW))
    dataset["fields"].loc[{"channel": name}] *= factor
    return dataset, f"has a mean {name} of .*: it is in other units"


HARMFUL = [
    fill_value, packed, other_calendar, torn, impossible_axes, radians, several_levels, wrong_units,
    celsius_called_kelvin, other_units_called_micrograms,
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@door_draws
@given(data=st.data(), harm=st.sampled_from(HARMFUL), lazy=st.booleans())
def test_a_harmful_change_is_refused_by_name(data: Any, harm: Any, lazy: bool) -> None:
    dataset, message = harm(usual(), data.draw)
    with tempfile.TemporaryDirectory() as folder:
        with pytest.raises(ValueError, match=message):
            write_store(dataset.chunk() if lazy else dataset, Path(folder, "new.zarr"))
        assert not list(Path(folder).iterdir())


NAMES = st.from_regex(NAME_PATTERN, fullmatch=True).filter(lambda n: n not in {*VARIABLES, *RESERVED_NAMES})
OTHER_NAMES = st.text(max_size=80).filter(lambda n: not re.fullmatch(NAME_PATTERN, n))
OTHER_NAMES |= st.sampled_from(sorted(RESERVED_NAMES))
TEXTS = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1, max_size=20)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@door_draws
@given(data=st.data(), changes=st.lists(st.sampled_from(HARMLESS[1:]), max_size=3, unique=True))
def test_variables_of_ones_own_are_read_back_from_any_form(data: Any, changes: list[Any]) -> None:
    dataset, draw = usual(), data.draw
    usual_names = dataset["channel"].values.tolist()
    kept = ["u", "v", *draw(st.lists(st.sampled_from(usual_names[2:]), unique=True))]
    own = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    described = [
        Variable(
            name=name,
            long_name=draw(TEXTS),
            standard_name=draw(st.none() | TEXTS),
            units=draw(st.sampled_from(["m", "ug m-3", "1", "molec cm-2", "kg m-2 s-1"])),
            valid_range=(-1e6, 1e6),
            pollutant=draw(st.booleans()),
        )
        for name in own
    ]
    places = [usual_names.index(name) for name in kept] + [2] * len(own)
    dataset = dataset.isel(channel=places).assign_coords(channel=[*kept, *own])
    expected = dataset["fields"]
    dataset = changed(dataset, changes, draw)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "new.zarr"
        write_store(given_to_writer(dataset, draw, Path(folder)), path, variables=described)
        store = open_store(path)
        assert [store.variables[name] for name in own] == described
        assert set(store.channels) == {*kept, *own}
        assert read_metadata(path).variables == store.variables
        for hour in (0, 24, HOURS - 1):
            found = in_usual_order(store, hour, expected)
            np.testing.assert_allclose(found, expected[hour], rtol=3e-6, atol=3e-5)


@pytest.mark.slow
@door_draws
@given(
    name=st.text(max_size=80).filter(lambda n: not re.fullmatch(NAME_PATTERN, n))
    | st.sampled_from(sorted(RESERVED_NAMES))
)
def test_any_other_name_is_refused(name: str) -> None:
    dataset = usual()
    dataset = dataset.assign_coords(channel=[*dataset["channel"].values[:-1], name])
    with tempfile.TemporaryDirectory() as folder:
        with pytest.raises(ValueError, match="cannot be the name of a variable"):
            write_store(dataset, Path(folder) / "new.zarr")
        assert not list(Path(folder).iterdir())
