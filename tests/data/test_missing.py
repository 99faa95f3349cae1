"""Values that a file does not have: lost chunks of zarr stores. `test_outside` has the packed fill values."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

from aqtopo.data import open_store, write_store
from aqtopo.data.channels import read_channel
from aqtopo.data.missing import absent_chunks
from aqtopo.data.outside import normalise, open_outside
from aqtopo.variables import VARIABLES, Variable
from tests.data.outside_files import make_forecasts, make_hours

PM25 = VARIABLES["pm25"]
PACKED = {"dtype": "int16", "scale_factor": 0.001, "add_offset": 40.0}
FORMS: dict[str, tuple[int, dict[str, Any]]] = {
    "v2": (2, {"chunks": (1, 6, 4)}),
    "v3": (3, {"chunks": (1, 6, 4)}),
    "sharded": (3, {"chunks": (1, 3, 4), "shards": (1, 6, 4)}),
}


def lose(array: Path, place: int = 1) -> str:
    """Delete a chunk of an array; return its name."""
    chunks = sorted(
        file for file in array.rglob("*") if file.is_file() and not file.name.startswith((".z", "zarr"))
    )
    chunks[place].unlink()
    return chunks[place].relative_to(array).as_posix()


def written(path: Path, form: str, dataset: xr.Dataset | None = None, **encoding: Any) -> Path:
    version, chunks = FORMS[form]
    hours = make_hours(hours=5) if dataset is None else dataset
    hours.to_zarr(path, zarr_format=version, encoding={"pm25": {**chunks, **encoding}}, consolidated=False)
    return path


@pytest.mark.parametrize("form", FORMS)
def test_a_lost_chunk_that_would_be_read_as_data_is_refused(tmp_path: Path, form: str) -> None:
    path = written(tmp_path / "a.zarr", form, **PACKED)
    assert absent_chunks(path / "pm25") is None
    lost = lose(path / "pm25")
    opened = open_outside(path)
    with pytest.raises(ValueError, match=rf"a\.zarr lacks 1 of 10 chunks .*{lost}\) of pm25.* read as 40"):
        read_channel(opened, PM25)
    read_channel(opened, VARIABLES["temp"])


@pytest.mark.parametrize("form", FORMS)
def test_a_lost_chunk_that_is_read_as_missing_is_reported(tmp_path: Path, form: str) -> None:
    path = written(tmp_path / "a.zarr", form)
    lose(path / "pm25")
    lost = lose(path / "pm25", 0)
    with pytest.warns(UserWarning, match=rf"2 of 10 chunks \(the first is {lost}\) of pm25: .* missing"):
        found = read_channel(open_outside(path), PM25)
    assert int(found.values.isnull().sum()) == 2 * 24


def test_the_lost_chunk_of_each_of_several_files_is_found(tmp_path: Path) -> None:
    paths = [
        written(tmp_path / f"{day}.zarr", "v3", make_hours(start=f"2016-01-0{day}"), **PACKED)
        for day in (1, 2)
    ]
    lose(paths[1] / "pm25")
    with pytest.raises(ValueError, match=r"2\.zarr lacks 1 of 6 chunks"):
        read_channel(open_outside(paths), PM25)


def test_a_dataset_that_xarray_opened_is_checked(tmp_path: Path) -> None:
    path = written(tmp_path / "a.zarr", "v3", **PACKED)
    lose(path / "pm25")
    opened = xr.open_zarr(path, consolidated=False).rename(lat="latitude").isel(time=slice(2))
    with pytest.raises(ValueError, match="lacks 1 of 10 chunks"):
        read_channel(normalise(opened, "a"), PM25)
    assert "zarr_arrays" not in opened["pm25"].attrs
    computed = opened.assign(pm25=opened["pm25"].clip(0).assign_attrs(units="ug m-3"))
    read_channel(normalise(computed, "a"), PM25)


@pytest.mark.parametrize(
    ("form", "name"), [(f, n) for f in ("v2", "v3") for n in ("lead_time", "lat", "init_time")]
)
def test_lost_chunks_of_coordinates_are_refused_by_name(tmp_path: Path, form: str, name: str) -> None:
    forecasts = make_forecasts(starts=3, leads=(12, 24, 48))
    forecasts.to_zarr(tmp_path / "a.zarr", zarr_format=FORMS[form][0], consolidated=False)
    lost = lose(tmp_path / "a.zarr" / name, 0)
    with pytest.raises(
        ValueError, match=rf"a\.zarr has lost 1 of 1 chunks .* {lost}\) of the coordinate {name}"
    ):
        open_outside(tmp_path / "a.zarr")


def test_a_lost_time_among_many_chunks_is_refused(tmp_path: Path) -> None:
    encoding = {"time": {"chunks": (1,), "units": "hours since 1970-01-01", "dtype": "int64"}}
    make_hours(hours=5).to_zarr(tmp_path / "a.zarr", encoding=encoding)
    lose(tmp_path / "a.zarr" / "time", 2)
    with pytest.raises(ValueError, match=r"has lost 1 of 5 chunks .* of the coordinate time"):
        open_outside(tmp_path / "a.zarr")


@pytest.mark.parametrize("version", [2, 3])
def test_a_chunk_left_out_for_its_zero_is_no_loss(tmp_path: Path, version: Any) -> None:
    one = make_forecasts(starts=1).isel(init_time=0)
    one.to_zarr(
        tmp_path / "a.zarr", zarr_format=version, encoding={"init_time": {"units": "hours since 2016-01-01"}}
    )
    encoding = {"time": {"chunks": (1,), "units": "hours since 2016-01-01", "dtype": "int64"}}
    make_hours().to_zarr(tmp_path / "b.zarr", zarr_format=version, encoding=encoding)
    assert absent_chunks(tmp_path / "b.zarr" / "time") is not None
    for name, expected in (("a", one), ("b", make_hours())):
        found = read_channel(open_outside(tmp_path / f"{name}.zarr"), PM25).values
        np.testing.assert_array_equal(found, expected["pm25"])


def test_zeros_that_a_writer_left_out_are_read_where_they_are_usual(tmp_path: Path) -> None:
    rain = Variable(name="rain", long_name="precipitation", units="mm", valid_range=(0.0, 100.0))
    dry = make_hours().rename(pm25="rain", temp="co")
    for name in ("rain", "co"):
        dry[name][1] = 0.0
        dry[name].attrs["units"] = "mm" if name == "rain" else "ug m-3"
    zeros = {"chunks": (1, 6, 8), "fill_value": 0.0}
    dry.to_zarr(tmp_path / "a.zarr", zarr_format=3, encoding={"rain": zeros, "co": zeros})
    opened = open_outside(tmp_path / "a.zarr")
    with pytest.warns(UserWarning, match=r"lacks 1 of 3 chunks .* of rain: their values count as 0"):
        np.testing.assert_array_equal(read_channel(opened, rain).values, dry["rain"])
    with pytest.raises(ValueError, match=r"of co, which would be read as 0\. .*write_empty_chunks=True"):
        read_channel(opened, VARIABLES["co"])
    dry.to_zarr(tmp_path / "b.zarr", zarr_format=3, encoding={"co": zeros}, write_empty_chunks=True)
    read_channel(open_outside(tmp_path / "b.zarr"), VARIABLES["co"])


def test_write_store_refuses_a_dataset_with_lost_chunks(
    tiny_dataset: xr.Dataset, tiny_store: Path, tmp_path: Path
) -> None:
    encoding = {"fields": {"chunks": (24, 11, 8, 16), "fill_value": 0.0}}
    short = tiny_dataset.isel(time=slice(72))
    for name in ("whole", "damaged"):
        short.to_zarr(tmp_path / f"{name}.zarr", zarr_format=3, encoding=encoding)
    lose(tmp_path / "damaged.zarr" / "fields")
    write_store(xr.open_zarr(tmp_path / "whole.zarr"), tmp_path / "new.zarr")
    assert "zarr_arrays" not in zarr.open_array(tmp_path / "new.zarr" / "fields", mode="r").attrs
    np.testing.assert_array_equal(open_store(tmp_path / "new.zarr").read(30), open_store(tiny_store).read(30))
    with pytest.raises(ValueError, match=r"damaged\.zarr lacks 1 of 3 chunks .* of fields.* read as 0"):
        write_store(xr.open_zarr(tmp_path / "damaged.zarr"), tmp_path / "other.zarr")
