import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from aqtopo.data import open_store, write_statistics, write_store
from aqtopo.variables import DYNAMIC_VARIABLES, STATIC_CHANNELS

Change = Callable[[xr.Dataset], xr.Dataset]


def test_written_hours_are_read_back(tiny_dataset: xr.Dataset, tiny_store: Path) -> None:
    store = open_store(tiny_store)
    assert store.channels == DYNAMIC_VARIABLES
    np.testing.assert_array_equal(store.times, tiny_dataset["time"].values.astype("datetime64[h]"))
    for index in (0, 23, 24, 719):
        read = store.read(index)
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, tiny_dataset["fields"].values[index])
    for place, name in enumerate(STATIC_CHANNELS):
        np.testing.assert_array_equal(store.static[name], tiny_dataset["static"].values[place])
    assert store.source == tiny_dataset.attrs["source"]
    assert store.attributes["simulated"] is True
    assert store.years == (2016, 2017, 2018)


def test_xarray_reads_it_with_cf_units_and_names(tiny_store: Path) -> None:
    with xr.open_zarr(tiny_store, consolidated=False) as dataset:
        assert dataset["fields"].attrs["channel_units"]["co"] == "ug m-3"
        assert dataset["fields"].attrs["channel_standard_name"]["u"] == "eastward_wind"
        assert dataset["static"].attrs["channel_units"]["elevation"] == "m"
        assert dataset["lat"].attrs == {"standard_name": "latitude", "units": "degrees_north", "axis": "Y"}
        assert dataset["time"].attrs["standard_name"] == "time"
        assert dataset["time"].values[0] == np.datetime64("2016-01-01T00")


def test_descending_latitude_is_kept(tiny_dataset: xr.Dataset, tmp_path: Path) -> None:
    write_store(tiny_dataset.isel(lat=slice(None, None, -1)), tmp_path / "flipped.zarr")
    store = open_store(tmp_path / "flipped.zarr")
    assert store.lat[0] > store.lat[-1]
    np.testing.assert_array_equal(store.read(5), tiny_dataset["fields"].values[5, :, ::-1])
    np.testing.assert_array_equal(store.static["lat2d"][:, 0], store.lat)


def test_store_can_be_pickled_after_reading(tiny_store: Path) -> None:
    store = open_store(tiny_store)
    before = store.read(7)
    sent = pickle.loads(pickle.dumps(store))
    assert "_fields" not in sent.__dict__
    np.testing.assert_array_equal(sent.read(7), before)


def test_locate_finds_times_and_names_the_first_absent_one(tiny_store: Path) -> None:
    store = open_store(tiny_store)
    times = np.array([["2016-01-02T03", "2018-01-10T23"]], "datetime64[h]")
    np.testing.assert_array_equal(store.locate(times), [[27, 719]])
    assert int(store.locate(np.array("2016-01-02T03", "datetime64[h]"))) == 27
    with pytest.raises(ValueError, match=r"has no fields for 2016-01-11T00.*lists the gaps"):
        store.locate(np.array(["2016-01-02T03", "2016-01-11T00", "2030-01-01T00"], "datetime64[h]"))


def test_digest_depends_on_statistics_and_coordinates(damaged: Path) -> None:
    first = open_store(damaged).digest
    assert open_store(damaged).digest == first
    write_statistics(damaged, [2017])
    assert open_store(damaged).digest == first
    second = open_store(damaged, years=[2017]).digest
    longitudes = zarr.open_group(damaged, mode="r+")["lon"]
    assert isinstance(longitudes, zarr.Array)
    longitudes[0] = 73.0
    assert len({first, second, open_store(damaged).digest}) == 3


# What cannot be opened.


def set_attribute(path: Path, name: str, value: object) -> None:
    zarr.open_group(path, mode="r+").attrs.update({name: value})


def set_value(path: Path, array: str, index: object, value: object) -> None:
    found = zarr.open_group(path, mode="r+")[array]
    assert isinstance(found, zarr.Array)
    found[index] = value  # type: ignore[index]


def rename_channel(path: Path) -> None:
    set_value(path, "channel", 5, "pm100")


def shuffle_hours(path: Path) -> None:
    set_value(path, "time", slice(10, 12), np.array([403235, 403234]))


def change_units(path: Path) -> None:
    metadata = path / "fields" / "zarr.json"
    described = json.loads(metadata.read_text(encoding="utf-8"))
    described["attributes"]["channel_units"]["co"] = "mg m-3"
    metadata.write_text(json.dumps(described), encoding="utf-8")


def describe(path: Path, key: str, value: object, array: str = "fields") -> None:
    zarr.open_group(path, mode="r+")[array].attrs[key] = value  # type: ignore[assignment]


def resize(path: Path, array: str, length: int) -> None:
    metadata = path / array / "zarr.json"
    described = json.loads(metadata.read_text(encoding="utf-8"))
    described["shape"] = [length]
    described["chunk_grid"]["configuration"]["chunk_shape"] = [length]
    metadata.write_text(json.dumps(described), encoding="utf-8")


def count_time_in_minutes(path: Path) -> None:
    metadata = path / "time" / "zarr.json"
    described = json.loads(metadata.read_text(encoding="utf-8"))
    described["attributes"]["units"] = "minutes since 2016-01-01"
    metadata.write_text(json.dumps(described), encoding="utf-8")


UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (shutil.rmtree, r"There is no data store at .*aqtopo prepare"),
    "empty folder": (lambda p: (shutil.rmtree(p), p.mkdir()), r"is a directory without a zarr group"),
    "a web page": (
        lambda p: (shutil.rmtree(p), p.write_text("<html>", encoding="utf-8")),
        r"is not a NetCDF file but a web page",
    ),
    "a NetCDF file": (
        lambda p: (shutil.rmtree(p), xr.Dataset({"pm25": 1.0}).to_netcdf(p)),
        r"is a NetCDF file, not a store\. Make a store from it with",
    ),
    "half a NetCDF file": (
        lambda p: (shutil.rmtree(p), p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99))),
        r"is a NetCDF file, not a store",
    ),
    "lost times": (
        lambda p: shutil.rmtree(p / "time" / "c"),
        r"has lost 1 of 1 files of `time`\. Copy it again",
    ),
    "lost static fields": (lambda p: shutil.rmtree(p / "static" / "c"), r"has lost 1 of 1 files of `static`"),
    "broken metadata": (
        lambda p: (p / "zarr.json").write_text("{", encoding="utf-8"),
        r"cannot be read as a zarr v3 group",
    ),
    "a file": (
        lambda p: (shutil.rmtree(p), p.write_text("hello", encoding="utf-8")),
        r"There is no data store at .*it begins with hello",
    ),
    "zarr v2": (
        lambda p: (shutil.rmtree(p), zarr.open_group(p, mode="w", zarr_format=2)),
        r"is a zarr group of version 2, not a store",
    ),
    "schema version": (
        lambda p: set_attribute(p, "schema_version", 99),
        r"has the schema version 99, but this aqtopo reads version 1\. Write it again",
    ),
    "no schema version": (
        lambda p: (shutil.rmtree(p), zarr.open_group(p, mode="w", zarr_format=3)),
        r"has the schema version None",
    ),
    "no source": (lambda p: set_attribute(p, "source", 3), r"no attribute `source`"),
    "no fields": (lambda p: shutil.rmtree(p / "fields"), r"lacks the float32 array `fields"),
    "no static fields": (lambda p: shutil.rmtree(p / "static"), r"lacks the float32 array `static"),
    "no latitude": (lambda p: shutil.rmtree(p / "lat"), r"lacks the coordinate `lat`"),
    "missing channel": (rename_channel, r"no long_name and no units and no valid_range of the channel pm100"),
    "no wind": (
        lambda p: set_value(p, "channel", 0, "w"),
        r"lacks the channel u in `fields`\. Every store has u, v in `fields`",
    ),
    "a path as a channel": (lambda p: set_value(p, "channel", 5, "../x"), r"'\.\./x' cannot be the name"),
    "a reserved channel": (lambda p: set_value(p, "channel", 5, "time"), r"'time' cannot be the name"),
    "hourly elevation": (
        lambda p: set_value(p, "channel", 5, "population"),
        r"has population in both arrays",
    ),
    "descriptions of a wrong type": (
        lambda p: describe(p, "channel_long_name", "text"),
        r"has channel_long_name = 'text'\. It must be a mapping",
    ),
    "a range of a wrong type": (
        lambda p: describe(p, "channel_valid_range", {"co": ["0", "9"]}),
        r"variable co has valid_range = \['0', '9'\]\. It must be two numbers",
    ),
    "a long name of a wrong type": (
        lambda p: describe(p, "channel_long_name", {"co": "a\nb"}),
        r"variable co has long_name = 'a\\nb'\. It must be printable text",
    ),
    "missing static channel": (
        lambda p: set_value(p, "static_channel", 0, "height"),
        r"lacks the channel elevation in `static`",
    ),
    "units": (change_units, r"gives the channel co in 'mg m-3'\. It must be in 'ug m-3'"),
    "unsorted time": (shuffle_hours, r"has the time 2016-01-01T10 out of order on its time axis.*Sort"),
    "a calendar without leap days": (
        lambda p: describe(p, "calendar", "noleap", array="time"),
        r"time axis whose values or calendar are unknown.*standard calendar",
    ),
    "a time axis of text": (
        lambda p: describe(p, "units", 3, array="time"),
        r"(cannot be read|time axis whose values)",
    ),
    "a time axis that would fill the memory": (
        lambda p: resize(p, "time", 10**11),
        r"has 100000000000 values in `time`, too many",
    ),
    "a mean of a wrong type": (
        lambda p: set_attribute(p, "channel_mean", [1.0]),
        r"has channel_mean = \[1\.0\]",
    ),
    "years of a wrong type": (
        lambda p: set_attribute(p, "statistics_years", 2016),
        r"has statistics_years = 2016",
    ),
    "repeated time": (
        lambda p: set_value(p, "time", 10, 403233),
        r"has the time 2016-01-01T09 repeated on its time axis",
    ),
    "half hours": (count_time_in_minutes, r"which is not a whole hour\. Times must be whole hours"),
    "latitude not monotonic": (
        lambda p: set_value(p, "lat", 3, 10.0),
        r"has a coordinate `lat` that is not strictly monotonic",
    ),
    "longitude repeated": (lambda p: set_value(p, "lon", 3, 82.0), r"coordinate `lon` that is not strictly"),
    "empty static channel": (
        lambda p: set_value(p, "static", 1, np.nan),
        r"has no finite value in the static channel population",
    ),
    "hole in the terrain": (
        lambda p: set_value(p, "static", (0, 2, 2), np.nan),
        r"has 1 of 128 cells without a finite value in the static channel elevation",
    ),
    "fractional mask": (
        lambda p: set_value(p, "static", (4, 2, 2), 0.5),
        r"mask with values other than 0 and 1",
    ),
}


def snapshot(path: Path) -> dict[Path, tuple[int, int]]:
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in files}


@pytest.mark.parametrize("fault", UNUSABLE)
def test_an_unusable_store_is_named_with_its_remedy(damaged: Path, fault: str) -> None:
    damage, message = UNUSABLE[fault]
    damage(damaged)
    before = snapshot(damaged)
    with pytest.raises(ValueError, match=message) as caught:
        open_store(damaged)
    assert str(damaged) in str(caught.value)
    assert "\n\n" not in str(caught.value)
    assert snapshot(damaged) == before


# What cannot be read.


def shard(path: Path, day: int) -> Path:
    return path / "fields" / "c" / str(day) / "0" / "0" / "0"


def flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 0x10
    file.write_bytes(content)


READ_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut short": (lambda f: f.write_bytes(f.read_bytes()[:1000]), "has no valid index at its end"),
    "empty": (lambda f: f.write_bytes(b""), "has no valid index at its end"),
    "flipped byte in the data": (lambda f: flip(f, 300), "has a wrong checksum"),
    "flipped byte in the index": (lambda f: flip(f, -20), "has no valid index at its end"),
    "gone": (Path.unlink, "is missing"),
}


@pytest.mark.parametrize("fault", READ_FAULTS)
def test_a_damaged_shard_is_named_with_its_time(damaged: Path, fault: str) -> None:
    damage, message = READ_FAULTS[fault]
    damage(shard(damaged, 2))
    store = open_store(damaged)
    store.read(47)
    with pytest.raises(ValueError, match=rf"unreadable fields at 2016-01-03T00.*fields/c/2/0/0/0 {message}"):
        store.read(48)


def test_hour_of_nan_is_not_reported_as_a_missing_shard(tiny_dataset: xr.Dataset, tmp_path: Path) -> None:
    tiny_dataset["fields"][24:48] = np.nan
    write_store(tiny_dataset, tmp_path / "nan.zarr")
    assert np.isnan(open_store(tmp_path / "nan.zarr").read(30)).all()
