import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from aqtopo.data import open_store, write_statistics, write_store
from aqtopo.data.shards import CHECKSUMS
from aqtopo.variables import DYNAMIC_VARIABLES, TARGET_VARIABLES, VARIABLES, Variable

Change = Callable[[xr.Dataset], xr.Dataset]


def days(dataset: xr.Dataset, *lengths: int) -> Iterator[xr.Dataset]:
    start = 0
    for length in lengths:
        yield dataset.isel(time=slice(start, start + length))
        start += length


def test_blocks_make_the_same_store_as_one_dataset(
    tiny_dataset: xr.Dataset, tiny_store: Path, tmp_path: Path
) -> None:
    write_store(days(tiny_dataset, 48, 240, 432), tmp_path / "blocks.zarr")
    write_statistics(tmp_path / "blocks.zarr", [2016])
    blocks, whole = open_store(tmp_path / "blocks.zarr"), open_store(tiny_store)
    assert blocks.digest == whole.digest
    for index in (47, 48, 300, 719):
        np.testing.assert_array_equal(blocks.read(index), whole.read(index))


def test_one_chunk_an_hour_and_one_shard_a_day(tiny_store: Path) -> None:
    fields = zarr.open_group(tiny_store, mode="r")["fields"]
    assert isinstance(fields, zarr.Array)
    assert fields.chunks == (1, 11, 8, 16)
    assert fields.shards == (24, 11, 8, 16)
    assert len(list((tiny_store / "fields" / "c").iterdir())) == 30


def test_every_shard_has_the_checksum_of_its_file(tiny_store: Path) -> None:
    kept = zarr.open_group(tiny_store, mode="r")[CHECKSUMS]
    assert isinstance(kept, zarr.Array)
    shards = [tiny_store / "fields" / "c" / str(shard) / "0" / "0" / "0" for shard in range(30)]
    digests = [hashlib.blake2b(shard.read_bytes(), digest_size=8).digest() for shard in shards]
    assert np.asarray(kept[:]).astype("<u8").tobytes() == b"".join(digests)
    assert len(set(digests)) == 30


# The form of the dataset.


def assert_same_store(one: Path, other: Path) -> None:
    first, second = open_store(one), open_store(other)
    np.testing.assert_array_equal(first.times, second.times)
    assert first.channels == second.channels
    for index in (0, 47, 48, len(first.times) - 1):
        np.testing.assert_allclose(first.read(index), second.read(index), rtol=1e-6)


@pytest.mark.parametrize("consolidated", [True, False])
def test_a_zarr_v2_store_of_others_is_read(
    tiny_dataset: xr.Dataset, tiny_store: Path, tmp_path: Path, consolidated: bool
) -> None:
    tiny_dataset["fields"].encoding["chunks"] = (7, 11, 5, 16)
    tiny_dataset.to_zarr(tmp_path / "v2.zarr", zarr_format=2, consolidated=consolidated)
    write_store(xr.open_zarr(tmp_path / "v2.zarr", consolidated=consolidated), tmp_path / "new.zarr")
    assert_same_store(tmp_path / "new.zarr", tiny_store)


@pytest.mark.parametrize("chunks", [{"time": 100}, {"time": 1, "lat": 3}, {"channel": 1}])
def test_chunks_of_any_shape_are_written(
    tiny_dataset: xr.Dataset, tiny_store: Path, tmp_path: Path, chunks: dict[str, int]
) -> None:
    write_store(tiny_dataset.chunk(chunks), tmp_path / "new.zarr")
    assert_same_store(tmp_path / "new.zarr", tiny_store)


def test_encodings_of_the_source_do_not_travel(
    tiny_dataset: xr.Dataset, tiny_store: Path, tmp_path: Path
) -> None:
    packed = {"dtype": "int16", "scale_factor": 2.0, "_FillValue": -32768}
    tiny_dataset["fields"].encoding = packed
    tiny_dataset["lat"].encoding = {"dtype": "float32"}
    write_store(days(tiny_dataset, 48, 672), tmp_path / "new.zarr")
    assert_same_store(tmp_path / "new.zarr", tiny_store)


def test_units_of_channels_are_converted(tiny_dataset: xr.Dataset, tiny_store: Path, tmp_path: Path) -> None:
    factor = xr.DataArray(
        [1e-3 if c == "co" else 0.01 if c == "psfc" else 1.0 for c in DYNAMIC_VARIABLES], dims="channel"
    )
    units = {"co": "mg m-3", "psfc": "hPa", "pm25": "µg/m³"}
    changed = (tiny_dataset["fields"].astype(np.float64) * factor).assign_attrs(channel_units=units)
    write_store(tiny_dataset.assign(fields=changed), tmp_path / "new.zarr")
    assert_same_store(tmp_path / "new.zarr", tiny_store)
    written = xr.open_zarr(tmp_path / "new.zarr", consolidated=False)["fields"]
    assert written.attrs["channel_units"]["co"] == "ug m-3"


def test_units_of_static_channels_are_converted(
    tiny_dataset: xr.Dataset, tiny_store: Path, tmp_path: Path
) -> None:
    feet = tiny_dataset["static"].astype(np.float64).copy()
    feet.loc[{"static_channel": "elevation"}] /= 0.3048
    feet.attrs["channel_units"] = {"elevation": "ft", "population": "persons/km2"}
    write_store(tiny_dataset.assign(static=feet), tmp_path / "new.zarr")
    elevation = open_store(tmp_path / "new.zarr").static["elevation"]
    np.testing.assert_allclose(elevation, open_store(tiny_store).static["elevation"], rtol=1e-6)


# Axes.


def described(dataset: xr.Dataset, **attributes: str) -> xr.Dataset:
    """Call the axes `rows` and `columns` and give each one attribute of CF."""
    renamed = dataset.rename(lat="rows", lon="columns")
    for axis, (key, value) in zip(("rows", "columns"), attributes.items(), strict=True):
        renamed[axis].attrs = {key.rstrip("_"): value}
    return renamed


AXES: dict[str, Change] = {
    "other names": lambda d: d.rename(lat="latitude", lon="longitude", time="valid_time"),
    "by standard name": lambda d: described(d, standard_name="latitude", standard_name_="longitude"),
    "by units": lambda d: described(d, units="degrees_north", units_="degreeE"),
    "coordinates as variables": lambda d: d.rename(lat="j", lon="i").reset_index(["j", "i"]).reset_coords(
        ["j", "i"]
    ).rename_vars(j="lat", i="lon"),
    "dimensions in another order": lambda d: d.transpose("lon", "channel", "static_channel", "lat", "time"),
    "one level": lambda d: d.expand_dims(level=[1000.0], axis=1),
    "a dimension of one without a coordinate": lambda d: d.expand_dims("bottom_top"),
    "rows and hours in disorder": lambda d: d.isel(lat=[3, 0, 1, 2, 7, 6, 5, 4], time=slice(None, None, -1)),
    "another turn of longitudes": lambda d: d.assign_coords(lon=d["lon"] - 360),
    "radians": lambda d: d.assign_coords(
        lat=("lat", np.radians(d["lat"].values), {"units": "radian"}),
        lon=("lon", np.radians(d["lon"].values), {"units": "radians"}),
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", AXES)
@pytest.mark.parametrize("lazy", [False, True])
def test_axes_of_another_form_make_the_same_store(
    tiny_dataset: xr.Dataset, tiny_store: Path, tmp_path: Path, form: str, lazy: bool
) -> None:
    changed = AXES[form](tiny_dataset)
    write_store(changed.chunk() if lazy else changed, tmp_path / "new.zarr")
    assert_same_store(tmp_path / "new.zarr", tiny_store)
    found, expected = open_store(tmp_path / "new.zarr"), open_store(tiny_store)
    np.testing.assert_allclose(found.lat, expected.lat, rtol=1e-12)
    np.testing.assert_allclose(np.mod(found.lon, 360), expected.lon, rtol=1e-12)
    np.testing.assert_allclose(found.static["elevation"], expected.static["elevation"])
    np.testing.assert_allclose(found.static["lon2d"][0], found.lon, rtol=1e-6)


def test_an_axis_without_a_jump_keeps_its_direction_and_convention(
    tiny_dataset: xr.Dataset, tmp_path: Path
) -> None:
    north_first = tiny_dataset.isel(lat=slice(None, None, -1)).assign_coords(lon=tiny_dataset["lon"] + 130)
    write_store(north_first, tmp_path / "new.zarr")
    store = open_store(tmp_path / "new.zarr")
    np.testing.assert_array_equal(store.lat, tiny_dataset["lat"].values[::-1])
    np.testing.assert_array_equal(store.lon, tiny_dataset["lon"].values + 130)


def test_longitudes_on_both_sides_of_greenwich_are_brought_together(
    tiny_dataset: xr.Dataset, tmp_path: Path
) -> None:
    lon = np.array([*range(8), *range(352, 360)])
    around = tiny_dataset.assign_coords(lon=lon).copy(deep=True)
    around["static"].loc[{"static_channel": "lon2d"}] = lon
    write_store(around, tmp_path / "new.zarr")
    store = open_store(tmp_path / "new.zarr")
    np.testing.assert_array_equal(store.lon, range(-8, 8))
    np.testing.assert_array_equal(store.static["lon2d"][3], store.lon)
    np.testing.assert_array_equal(store.read(5), np.roll(tiny_dataset["fields"].values[5], 8, axis=-1))


def test_a_single_hour_may_have_its_time_as_a_scalar(tiny_dataset: xr.Dataset, tmp_path: Path) -> None:
    write_store(tiny_dataset.isel(time=3), tmp_path / "new.zarr")
    assert open_store(tmp_path / "new.zarr").times.tolist() == [
        tiny_dataset["time"].values[3].astype("M8[h]")
    ]


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.isel(lat=slice(None, None, -1)),
        lambda d: d.assign_coords(lon=d["lon"] + 4.0),
        lambda d: d.isel(lon=slice(1, None)),
    ],
)
def test_blocks_on_another_grid_are_refused(tiny_dataset: xr.Dataset, tmp_path: Path, change: Change) -> None:
    first, second = days(tiny_dataset, 48, 48)
    with pytest.raises(ValueError, match=r"A block of .*new\.zarr has other \w+itudes than the first"):
        write_store([first, change(second)], tmp_path / "new.zarr")
    assert list(tmp_path.iterdir()) == []


# What cannot be written.


def snapshot(path: Path) -> dict[Path, tuple[int, int]]:
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in files}


def swap_channels(dataset: xr.Dataset) -> xr.Dataset:
    return dataset.isel(channel=[1, 0, *range(2, 11)])


REFUSED: dict[str, tuple[Change, str]] = {
    "no source": (lambda d: d.drop_attrs(), r"no attribute `source`"),
    "no fields": (lambda d: d.drop_vars("fields"), "lacks the float32 array `fields"),
    "no static": (lambda d: d.drop_vars("static"), r"lacks the float32 array `static"),
    "another dimension": (
        lambda d: d.expand_dims(level=[1000, 850], axis=2),
        r"has fields on the further dimension level \(size 2\).*isel\(level=0\)",
    ),
    "curvilinear": (
        lambda d: (
            d.rename(lat="y", lon="x")
            .drop_vars(["y", "x"])
            .assign_coords(lat=(("y", "x"), d["static"].values[2]), lon=(("y", "x"), d["static"].values[3]))
        ),
        r"has `fields` on the dimensions time, channel, y, x.*latitudes and longitudes of one dimension each",
    ),
    "no longitude": (lambda d: d.drop_vars("lon"), r"lacks the coordinate `lon`"),
    "missing channel": (lambda d: d.isel(channel=slice(1, None)), r"lacks the channel u in `fields`"),
    "unknown channel": (
        lambda d: d.isel(channel=[*range(11), 0]).assign_coords(channel=[*DYNAMIC_VARIABLES, "ch4"]),
        r"no long_name and no units and no valid_range of the channel ch4.*variables=\[Variable",
    ),
    "channel twice": (lambda d: d.isel(channel=[*range(11), 0]), r"names a channel twice"),
    "wrong units": (
        lambda d: d.assign(fields=d["fields"].assign_attrs(channel_units={"co": "ppb"})),
        r"channel co in units that cannot be used\. 'ppb' is a ratio",
    ),
    "units of another spelling": (
        lambda d: d.assign(fields=d["fields"].assign_attrs(channel_units={"SO2": "mg m-3"})),
        r"has channel_units of SO2, and the channel so2",
    ),
    "an hour twice": (lambda d: d.isel(time=[0, 1, 1]), "the time 2016-01-01T01:00 more than once"),
    "half an hour": (
        lambda d: d.assign_coords(time=d["time"].values + np.timedelta64(30, "m")),
        r"not a whole hour",
    ),
    "no time": (lambda d: d.isel(time=slice(0, 0)), r"has an empty time axis"),
    "NaN in static": (
        lambda d: d.assign(static=d["static"].where(d["lat"] > 21)),
        r"static channel elevation",
    ),
    "latitude twice": (
        lambda d: d.assign_coords(lat=d["lat"].values.round(-1)),
        "latitude 20 more than once",
    ),
    "latitudes beyond the pole": (
        lambda d: d.assign_coords(lat=d["lat"].values + 70),
        r"has the latitude 94\.0, which is not within -90 to 90 degrees.*exchanged",
    ),
    "longitudes of another turn": (
        lambda d: d.assign_coords(lon=d["lon"].values + 400),
        r"has the longitude 474\.0, which is not within -360 to 360 degrees",
    ),
    "radians": (
        lambda d: d.assign_coords(lat=np.radians(d["lat"].values), lon=np.radians(d["lon"].values)),
        r"latitudes 0\.3491 to 0\.8378 and longitudes 1\.292 to 2\.339, which are radians.*'radian'",
    ),
    "torn longitudes": (
        lambda d: d.assign_coords(lon=[*range(1, 9), *range(352, 360)]),
        r"a jump in longitude from -1 to 1, where the other steps are 1.*without missing columns",
    ),
    "missing row": (lambda d: d.isel(lat=[0, 1, 2, 4, 5, 6, 7]), "a jump in latitude"),
    "irregular steps": (lambda d: d.assign_coords(lat=[20, 24, 29.2, *range(33, 53, 4)]), "irregular steps"),
    "packed": (
        lambda d: d.assign(fields=d["fields"].assign_attrs(scale_factor=0.1)),
        r"new\.zarr has the undecoded variable fields: scale_factor.*decode_cf",
    ),
    "times as numbers": (
        lambda d: d.assign_coords(time=("time", np.arange(720), {"units": "hours since 2016-01-01"})),
        "undecoded time time",
    ),
    "another calendar": (
        lambda d: d.assign_coords(time=xr.date_range("2016-01-01", periods=720, freq="h", calendar="noleap")),
        "time in the calendar 'noleap'",
    ),
    "a fill value": (
        lambda d: d.assign(fields=d["fields"].where(d["time"] != d["time"][30], -9999.0)),
        r"has u = -9999 in 128 of .*first at time 2016-01-02T06:00, latitude 20, longitude 74.*_FillValue",
    ),
    "kelvin in Celsius": (
        lambda d: d.assign(fields=d["fields"] - 273.15 * (d["channel"] == "temp")),
        r"has temp = .*far outside 180 to 340 K",
    ),
    "-99 m as a fill value": (
        lambda d: d.assign(
            static=d["static"].where((d["lat"] > 21) | (d["static_channel"] != "elevation"), -99)
        ),
        r"has elevation = -99 in 16 of 128 values.*fill value that is not declared",
    ),
    "a fill value in static": (
        lambda d: d.assign(static=d["static"].where(d["lat"] > 21, -9999.0)),
        r"-9999 in 16 of|mask with values",
    ),
}


TOO_LOW = [(name, 1e-9) for name in TARGET_VARIABLES]
TOO_LOW += [(name, 1e-3) for name in ("pm25", "pm10", "co", "o3")] + [("rh", 1e-2)]
"""Of SO2 and NO2, a thousandth is as low as in clean air."""


@pytest.mark.parametrize(("name", "factor"), TOO_LOW)
@pytest.mark.parametrize("hours", [1, 240])
def test_values_in_other_units_with_the_same_label_are_refused(
    tiny_dataset: xr.Dataset, tmp_path: Path, name: str, factor: float, hours: int
) -> None:
    tiny_dataset["fields"].loc[{"channel": name}] *= factor
    with pytest.raises(ValueError, match=rf"new.zarr has a mean {name} of .*: it is in other units than its"):
        write_store(tiny_dataset.isel(time=slice(0, hours)), tmp_path / "new.zarr")


def test_a_description_may_give_another_level_or_none(tiny_dataset: xr.Dataset, tmp_path: Path) -> None:
    tiny_dataset["fields"].loc[{"channel": ["o3", "co"]}] *= 1e-3
    own = [
        replace(VARIABLES["o3"], plausible_level=(1e-6, 1.0)),
        replace(VARIABLES["co"], plausible_level=None),
    ]
    write_store(tiny_dataset, tmp_path / "new.zarr", variables=own)
    write_statistics(tmp_path / "new.zarr", [2016])
    variables = open_store(tmp_path / "new.zarr").variables
    assert (variables["o3"], variables["co"], variables["pm25"]) == (*own, VARIABLES["pm25"])


def test_the_level_of_a_variable_of_ones_own_is_checked(tiny_dataset: xr.Dataset, tmp_path: Path) -> None:
    nh3 = Variable(name="nh3", long_name="ammonia", units="ug m-3", valid_range=(0, 500), pollutant=True)
    names = [*DYNAMIC_VARIABLES[:-1], "nh3"]
    dataset = tiny_dataset.assign_coords(channel=names)
    dataset["fields"].loc[{"channel": "nh3"}] *= 1e-9
    write_store(dataset, tmp_path / "unchecked.zarr", variables=[nh3])
    with pytest.raises(ValueError, match=r"a mean nh3 of .*, outside 0\.001 to 100 ug m-3"):
        write_store(dataset, tmp_path / "new.zarr", variables=[replace(nh3, plausible_level=(0.001, 100))])


@pytest.mark.parametrize("fault", REFUSED)
def test_an_unfit_dataset_leaves_nothing_behind(tiny_dataset: xr.Dataset, tmp_path: Path, fault: str) -> None:
    change, message = REFUSED[fault]
    with pytest.raises(ValueError, match=message):
        write_store(change(tiny_dataset), tmp_path / "new.zarr")
    assert list(tmp_path.iterdir()) == []


def test_blocks_must_be_in_order_of_time(tiny_dataset: xr.Dataset, tmp_path: Path) -> None:
    first, second, third = days(tiny_dataset, 48, 24, 30)
    with pytest.raises(ValueError, match="2016-01-01T00 out of order"):
        write_store([second, first], tmp_path / "new.zarr")
    with pytest.raises(ValueError, match="repeated"):
        write_store([first, first.isel(time=[-1])], tmp_path / "new.zarr")
    with pytest.raises(ValueError, match="another order"):
        write_store([first, swap_channels(second)], tmp_path / "new.zarr")
    with pytest.raises(ValueError, match=r"ends after 30 h .* multiple of 24 h"):
        write_store([third, tiny_dataset.isel(time=slice(200, 300))], tmp_path / "new.zarr")
    with pytest.raises(ValueError, match="no block was given"):
        write_store([], tmp_path / "new.zarr")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_store_is_not_overwritten(tiny_dataset: xr.Dataset, damaged: Path) -> None:
    before = snapshot(damaged)
    with pytest.raises(ValueError, match="exists already and is not overwritten"):
        write_store(tiny_dataset, damaged)
    assert snapshot(damaged) == before


def test_two_writers_do_not_disturb_each_other(tiny_dataset: xr.Dataset, tmp_path: Path) -> None:
    (tmp_path / "new.zarr.partial").mkdir()  # somebody else's

    def slow() -> Iterator[xr.Dataset]:
        yield tiny_dataset.isel(time=slice(0, 24))
        write_store(tiny_dataset.isel(time=slice(0, 48)), tmp_path / "new.zarr")

    with pytest.raises(ValueError, match=r"new\.zarr exists already"):
        write_store(slow(), tmp_path / "new.zarr")
    assert open_store(tmp_path / "new.zarr").times.size == 48
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.zarr", "new.zarr.partial"]


def test_path_that_cannot_be_written_is_named(tiny_dataset: xr.Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match=r"file/new\.zarr cannot be written"):
        write_store(tiny_dataset, tmp_path / "file" / "new.zarr")


def test_an_interrupted_writer_leaves_nothing_behind(tiny_dataset: xr.Dataset, tmp_path: Path) -> None:
    def interrupted() -> Iterator[xr.Dataset]:
        yield tiny_dataset.isel(time=slice(0, 48))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_store(interrupted(), tmp_path / "new.zarr")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("times", [np.arange(1), np.zeros(1), np.zeros(1, "m8[h]")])
def test_numbers_as_times_are_refused(tiny_dataset: xr.Dataset, tmp_path: Path, times: np.ndarray) -> None:
    dataset = tiny_dataset.isel(time=slice(0, 1)).assign_coords(time=times)
    with pytest.raises(ValueError, match=r"has times of the type \S+ instead of times"):
        write_store(dataset, tmp_path / "new.zarr")


def test_a_full_disk_is_named_with_the_store(tiny_dataset: xr.Dataset, full_disk: Path) -> None:
    with pytest.raises(OSError, match=r"No space left on device: .*new\.zarr"):
        write_store(tiny_dataset, full_disk / "new.zarr")
    assert [path.name for path in full_disk.iterdir()] == ["filler"]
