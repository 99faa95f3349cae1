"""Files from outside: formats, decoding, damage, several files."""

import fcntl
import gzip
import os
import shutil
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from aqtopo.data.channels import read_channel
from aqtopo.data.classic_netcdf import classic_size
from aqtopo.data.outside import normalise, open_outside
from aqtopo.variables import VARIABLES
from tests.data.outside_files import make_forecasts, make_hours

PM25 = VARIABLES["pm25"]
PACKED = {"pm25": {"dtype": "int16", "scale_factor": 0.01, "add_offset": 40.0, "_FillValue": -32768}}


@pytest.mark.parametrize("form", ["nc", "classic", "packed", "zarr2", "zarr3", "zarr2 plain", "zarr3 plain"])
def test_every_format_gives_the_same_values(tmp_path: Path, form: str) -> None:
    hours = make_hours()
    path = tmp_path / ("file.zarr" if "zarr" in form else "file")
    if "zarr" in form:
        hours.to_zarr(path, zarr_format=int(form[4]), consolidated="plain" not in form)
    else:
        hours.to_netcdf(
            path,
            engine="netcdf4",
            format="NETCDF3_CLASSIC" if form == "classic" else "NETCDF4",
            encoding=PACKED if form == "packed" else {},
        )
    opened = open_outside(path)
    np.testing.assert_allclose(
        read_channel(opened, PM25).values, hours["pm25"], rtol=0, atol=0.006 if form == "packed" else 0
    )
    np.testing.assert_array_equal(opened["time"], hours["time"])
    assert all(not variable.encoding for variable in opened.variables.values())


def test_a_lazy_dataset_is_not_loaded(tmp_path: Path) -> None:
    make_hours().to_netcdf(tmp_path / "a.nc")
    assert not open_outside(tmp_path / "a.nc")["pm25"]._in_memory


@pytest.mark.parametrize("chunks", [{"time": 2}, {"lat": 1, "lon": 5}, {}])
def test_chunks_of_any_shape_are_read(chunks: dict[str, int]) -> None:
    hours = make_hours()
    opened = normalise(hours.chunk(chunks).isel(lat=slice(None, None, -1)), "chunked")
    assert opened["pm25"].chunks is not None
    np.testing.assert_array_equal(read_channel(opened, PM25).values, hours["pm25"])


# Undecoded data and calendars.


def test_undecoded_packing_is_refused(tmp_path: Path) -> None:
    make_hours().to_netcdf(tmp_path / "a.nc", encoding=PACKED)
    with pytest.raises(
        ValueError, match=r"a\.nc has the undecoded variable pm25: scale_factor = 0\.01.*decode_cf"
    ):
        normalise(xr.open_dataset(tmp_path / "a.nc", mask_and_scale=False), "a.nc")


def test_undecoded_times_are_refused(tmp_path: Path) -> None:
    make_hours().to_netcdf(tmp_path / "a.nc")
    with pytest.raises(
        ValueError, match=r"undecoded time time: numbers in 'hours since 2016-01-01.*decode_times"
    ):
        normalise(xr.open_dataset(tmp_path / "a.nc", decode_times=False), "a.nc")


@pytest.mark.parametrize("calendar", ["noleap", "360_day", "julian"])
def test_other_calendars_are_named(tmp_path: Path, calendar: str) -> None:
    times = xr.date_range("2016-01-01", periods=3, freq="h", calendar=calendar, use_cftime=True)
    hours = make_hours().assign_coords(time=times)
    hours.to_netcdf(tmp_path / "a.nc")
    for act in (lambda: open_outside(tmp_path / "a.nc"), lambda: normalise(hours, "a.nc")):
        with pytest.raises(
            ValueError, match=rf"a\.nc has time in the calendar '{calendar}'.*convert_calendar"
        ):
            act()


def test_cftime_dates_of_the_standard_calendar_are_read() -> None:
    times = xr.date_range("2016-01-01", periods=3, freq="h", calendar="standard", use_cftime=True)
    opened = normalise(make_hours().assign_coords(time=times), "a.nc")
    np.testing.assert_array_equal(opened["time"], make_hours()["time"])


def test_times_with_a_zone_are_named() -> None:
    zoned = pd.date_range("2016-01-01", periods=3, freq="h", tz="Asia/Shanghai")
    for times in (zoned, np.array(list(zoned), dtype=object)):
        with pytest.raises(ValueError, match=r"a time zone in time \(Asia/Shanghai\).*tz_convert"):
            normalise(make_hours().assign_coords(time=times), "a.nc")


def test_a_zone_in_the_units_is_converted_to_utc(tmp_path: Path) -> None:
    make_hours().to_netcdf(tmp_path / "a.nc")
    with netCDF4.Dataset(tmp_path / "a.nc", "a") as file:
        file["time"].units = "hours since 2016-01-01 08:00:00 +08:00"
    np.testing.assert_array_equal(open_outside(tmp_path / "a.nc")["time"], make_hours()["time"])


@pytest.mark.parametrize("units", ["days since 1900-01-01", "minutes since 2016-01-01"])
def test_times_as_floats_are_whole_hours(tmp_path: Path, units: str) -> None:
    hours = make_hours(hours=30)
    hours.to_netcdf(tmp_path / "a.nc", encoding={"time": {"units": units, "dtype": "float64"}})
    np.testing.assert_array_equal(open_outside(tmp_path / "a.nc")["time"], hours["time"])


@pytest.mark.parametrize("units", ["days since -4713-01-01", "hours since 9000-01-01"])
def test_times_beyond_the_range_of_nanoseconds_are_named(tmp_path: Path, units: str) -> None:
    make_hours().to_netcdf(tmp_path / "a.nc")
    with netCDF4.Dataset(tmp_path / "a.nc", "a") as file:
        file["time"].units = units
    with pytest.raises(ValueError, match=r"a\.nc has the time .* outside the years 1678 to 2262"):
        open_outside(tmp_path / "a.nc")


def test_months_are_refused(tmp_path: Path) -> None:
    make_hours().to_netcdf(tmp_path / "a.nc")
    with netCDF4.Dataset(tmp_path / "a.nc", "a") as file:
        file["time"].units = "months since 2016-01-01"
    with pytest.raises(
        ValueError, match=r"cannot be decoded .*'months since 2016-01-01'.*Write them in hours"
    ):
        open_outside(tmp_path / "a.nc")


# Fill values of packed integers.


def packed_file(path: Path, kind: str, fill: int | None, **declared: Any) -> Path:
    """Write PM2.5 as packed integers, the first of which is `fill`."""
    hours = make_hours()
    with netCDF4.Dataset(path, "w") as file:
        for axis in ("lat", "lon", "time"):
            file.createDimension(axis, hours.sizes[axis])
            file.createVariable(axis, "f8", (axis,))[:] = hours[axis].values.astype("f8")
        file["time"].units = "nanoseconds since 1970-01-01"
        pm25 = file.createVariable("pm25", kind, ("time", "lat", "lon"), **declared)
        pm25.setncatts({"units": "ug m-3", "scale_factor": 0.001, "add_offset": 40.0})
        pm25.set_auto_maskandscale(False)
        pm25[:] = np.round((hours["pm25"].values - 40.0) / 0.001) if "i" in kind else 7
        if fill is not None:
            pm25[0, 0, 0] = fill
    return path


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(
    ("kind", "fill"),
    [("i2", -32767), ("i2", -32768), ("i4", -2147483647), ("i4", -(2**31)), ("u2", 65535), ("i8", -(2**63))],
)
def test_a_default_fill_value_of_packed_integers_is_refused(
    tmp_path: Path, kind: str, fill: int, lazy: bool
) -> None:
    path = packed_file(tmp_path / "a.nc", kind, fill)
    opened = open_outside(path)
    assert not opened["pm25"].variable._in_memory
    if lazy:
        opened = normalise(xr.open_dataset(path, chunks={}), str(path))
    with pytest.raises(ValueError, match=r"a\.nc has pm25 = -?\d.*first at time 2016-01-01T00:00"):
        read_channel(opened, PM25)
    masked = read_channel(opened, PM25, on_invalid="mask")
    assert masked.masked == 1
    assert np.isnan(masked.values.values[0, 0, 0])


def test_a_packed_fill_value_is_named_as_it_is_stored(tmp_path: Path) -> None:
    opened = open_outside(packed_file(tmp_path / "a.nc", "i2", -32767))
    with pytest.raises(ValueError, match=r"pm25 = -32767 in 1 of 144 values.*attribute `_FillValue`"):
        read_channel(opened, PM25)


@pytest.mark.parametrize(("kind", "value"), [("i1", -127), ("u1", 255), ("i2", -32766), ("u2", 0)])
def test_packed_integers_that_mean_data_are_kept(tmp_path: Path, kind: str, value: int) -> None:
    opened = open_outside(packed_file(tmp_path / "a.nc", kind, value))
    assert opened["pm25"].values[0, 0, 0] == pytest.approx(40.0 + 0.001 * value)


def test_a_declared_fill_value_leaves_the_others_as_data(tmp_path: Path) -> None:
    opened = open_outside(packed_file(tmp_path / "a.nc", "i2", -32767, fill_value=-1))
    assert opened["pm25"].values[0, 0, 0] == pytest.approx(40.0 - 32.767)


# Damage.


@pytest.mark.parametrize("form", ["NETCDF4", "NETCDF3_CLASSIC", "NETCDF3_64BIT"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.95])
def test_half_a_download_is_named(tmp_path: Path, form: Any, part: float) -> None:
    make_hours(hours=20).to_netcdf(tmp_path / "whole.nc", format=form)
    content = (tmp_path / "whole.nc").read_bytes()
    (tmp_path / "half.nc").write_bytes(content[: int(part * len(content))])
    with pytest.raises(ValueError, match=r"half\.nc is damaged or incomplete: it has \d+ bytes.*again"):
        open_outside(tmp_path / "half.nc")


@pytest.mark.parametrize("form", ["NETCDF3_CLASSIC", "NETCDF3_64BIT", "NETCDF3_64BIT_DATA"])
@pytest.mark.parametrize("records", [None, "one", "several"])
def test_the_size_of_a_classic_file_is_known(tmp_path: Path, form: Any, records: str | None) -> None:
    path = tmp_path / "a.nc"
    with netCDF4.Dataset(path, "w", format=form) as file:
        file.title = "of odd length"
        file.createDimension("time", None if records else 3)
        file.createDimension("lat", 5)
        for name, kind in (("a", "f4"), ("b", "i2"), ("c", "S1"))[: 1 if records == "one" else 3]:
            variable = file.createVariable(name, kind, ("time", "lat"))
            variable.units = "m"
            variable[:] = np.ones((3, 5), "f4") if kind != "S1" else np.full((3, 5), b"x")
        file.createVariable("fixed", "f8", ("lat",))[:] = 1.0
    with path.open("rb") as binary:
        needed = classic_size(binary)
    assert 0 <= path.stat().st_size - needed < 8  # padding
    path.write_bytes(path.read_bytes()[: needed - 1])
    with pytest.raises(ValueError, match=rf"a\.nc is damaged or incomplete: .*{needed} bytes are declared"):
        open_outside(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"\n<!DOCTYPE html>\n<html>", "is not a NetCDF file but a web page: it begins with <!DOCTYPE html>"),
        (b'{"message": "no licence"}', r'is not a NetCDF file: it begins with {"message": "no licence"}'),
        (gzip.compress(b"CDF\x01", mtime=0), r"is compressed \(gzip\).*gunzip"),
        (b"PK\x03\x04abc", r"is compressed \(zip\)"),
        (b"GRIB\x00\x00", "is a GRIB file.*cdo"),
        (b"version https://git-lfs.github.com/spec/v1", "pointer of Git LFS"),
        (b"\x00\x01\x02\x03", "is not a NetCDF file"),
        (b"time,lat,lon\n", "is not a NetCDF file: it begins with time,lat,lon"),
    ],
)
def test_other_content_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.nc").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_outside(tmp_path / "a.nc")


def test_missing_files_and_plain_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.nc does not exist: there is no such file"):
        open_outside(tmp_path / "gone.nc")
    os.mkfifo(tmp_path / "pipe")  # a folder that is no store is not searched for pipes
    with pytest.raises(ValueError, match="is a directory without a zarr group"):
        open_outside(tmp_path)
    with pytest.raises(ValueError, match="No file is given"):
        open_outside([])


def test_a_locked_file_is_named(tmp_path: Path) -> None:
    make_hours().to_netcdf(tmp_path / "a.nc")
    with (tmp_path / "a.nc").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as HDF5 does while it writes
        with pytest.raises(ValueError, match=r"a\.nc is locked: another program is writing it"):
            open_outside(tmp_path / "a.nc")


# Several files.


def test_files_with_other_packing_and_units_are_joined(tmp_path: Path) -> None:
    days = [make_hours(start=f"2016-01-0{day}", seed=day) for day in (1, 2)]
    days[0].to_netcdf(tmp_path / "1.nc", encoding=PACKED)
    light = days[1].assign(pm25=(days[1]["pm25"] * 1e-9).assign_attrs(units="kg m-3"))
    light.to_netcdf(
        tmp_path / "2.nc", encoding={"pm25": {"dtype": "int16", "scale_factor": 1e-11, "_FillValue": -1}}
    )
    opened = open_outside([tmp_path / "2.nc", tmp_path / "1.nc"])
    assert opened["time"].to_index().is_monotonic_increasing
    expected = xr.concat(days, "time")["pm25"]
    np.testing.assert_allclose(read_channel(opened, PM25).values, expected, atol=0.011)
    assert opened["pm25"].chunks is not None


def test_single_forecasts_are_joined(tmp_path: Path) -> None:
    forecasts = make_forecasts()
    for start in (0, 1):
        forecasts.isel(init_time=start).to_zarr(tmp_path / f"{start}.zarr")
    opened = open_outside([tmp_path / "0.zarr", tmp_path / "1.zarr"])
    xr.testing.assert_equal(
        read_channel(opened, PM25).values, read_channel(normalise(forecasts, "f"), PM25).values
    )


def test_files_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    def write(name: str, dataset: xr.Dataset) -> Path:
        dataset.to_netcdf(tmp_path / name)
        return tmp_path / name

    first = write("1.nc", make_hours())
    with pytest.raises(
        ValueError, match=r"2\.nc has the time 2016-01-01T02:00, and .*1\.nc has it too.*overlap"
    ):
        open_outside([first, write("2.nc", make_hours(start="2016-01-01T02"))])
    with pytest.raises(ValueError, match=r"3\.nc has another longitude axis than .*1\.nc"):
        open_outside([first, write("3.nc", make_hours(start="2016-01-02", lon=np.arange(8.0)))])
    wrong = make_hours(start="2016-01-02")
    wrong["pm25"].attrs["units"] = "K"
    with pytest.raises(ValueError, match=r"4\.nc has pm25 in 'K', and the first file in 'ug m-3'"):
        open_outside([first, write("4.nc", wrong)])
    fixed = make_hours().isel(time=0, drop=True)
    with pytest.raises(ValueError, match=r"5\.nc has no time axis along which"):
        open_outside([write("5.nc", fixed), first])
    with pytest.raises(ValueError, match=r"5\.nc has no time, and .*1\.nc has"):
        open_outside([first, tmp_path / "5.nc"])


@pytest.mark.parametrize("name", ["lat", "pm25"])
def test_arrays_that_a_file_cannot_hold_are_not_read(tmp_path: Path, name: str) -> None:
    with netCDF4.Dataset(tmp_path / "large.nc", "w") as file:
        file.createDimension(name if name == "lat" else "y", 2**30)
        file.createVariable(name, "f4", (name if name == "lat" else "y",), chunksizes=(2**20,))
    with pytest.raises(ValueError, match=rf"declares 1073741824 values of {name}, more than its bytes can"):
        open_outside(tmp_path / "large.nc")


def test_an_unreadable_folder_of_a_store_is_named(tmp_path: Path) -> None:
    make_hours().to_zarr(tmp_path / "a.zarr")
    inner = os.open(tmp_path / "a.zarr", os.O_RDONLY)
    for _ in range(25):  # the path becomes too long, which stops root too
        os.mkdir("x" * 200, dir_fd=inner)
        outer, inner = inner, os.open("x" * 200, os.O_RDONLY, dir_fd=inner)
        os.close(outer)
    os.close(inner)
    with pytest.raises(ValueError, match=r"a\.zarr has a folder that cannot be read \(File name too long\)"):
        open_outside(tmp_path / "a.zarr")
    shutil.rmtree(tmp_path / "a.zarr")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.nc")
    with pytest.raises(ValueError, match=r"pipe\.nc is a pipe or a device"):
        open_outside(tmp_path / "pipe.nc")
