"""Forecasts written and read back, and places that are refused."""

import re
import sys
import warnings
from pathlib import Path

import netCDF4
import numpy as np
import pytest
import xarray as xr

from aqtopo.inference.cf import lead_time_dataset
from aqtopo.inference.forecast_file import check_output, write_forecast


@pytest.fixture
def dataset() -> xr.Dataset:
    values = np.random.default_rng(0).normal(30.0, 20.0, (2, 2, 3, 4)).astype(np.float32)
    values[0, 0, 0, 0] = np.nan
    made = lead_time_dataset(
        values,
        init_time=np.datetime64("2018-01-15T00", "h"),
        pollutants=("pm25", "o3"),
        horizons_h=(12, 96),
        lat=np.linspace(48.0, 20.0, 3),
        lon=np.linspace(74.0, 134.0, 4),
    )
    return made.assign_attrs(source="made for a test")


def read(path: Path) -> xr.Dataset:
    with warnings.catch_warnings(), xr.open_dataset(path) as opened:
        warnings.simplefilter("error")
        return opened.load()


@pytest.mark.parametrize("suffix", [".zarr", ".nc"])
def test_what_is_written_is_read_back_the_same_and_without_warnings(
    dataset: xr.Dataset, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"forecast{suffix}"
    write_forecast(dataset, path)
    xr.testing.assert_identical(read(path), dataset)
    assert list(tmp_path.iterdir()) == [path]


def test_netcdf_has_the_attributes_that_cf_readers_look_for(dataset: xr.Dataset, tmp_path: Path) -> None:
    path = tmp_path / "forecast.nc"
    write_forecast(dataset, path)
    with netCDF4.Dataset(path) as file:
        assert file.Conventions == "CF-1.11"
        assert set(file["pm25"].coordinates.split()) == {"init_time", "time"}
        for name in ("time", "init_time"):
            assert file[name].units == "hours since 1970-01-01"
            assert file[name].calendar == "standard"
        for name in ("time", "init_time", "lead_time", "lat", "lon"):
            assert "_FillValue" not in file[name].ncattrs()
        assert file["lead_time"].units == "hours"


@pytest.mark.parametrize("suffix", [".zarr", ".nc"])
def test_an_existing_forecast_is_replaced_only_when_asked(
    dataset: xr.Dataset, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"forecast{suffix}"
    write_forecast(dataset, path)
    with pytest.raises(ValueError, match=r"exists already.*--overwrite"):
        write_forecast(dataset + 1.0, path)
    xr.testing.assert_identical(read(path), dataset)
    write_forecast(dataset.isel(lead_time=[0]), path, overwrite=True)
    xr.testing.assert_identical(read(path), dataset.isel(lead_time=[0]))


def test_a_directory_that_is_no_forecast_is_not_replaced(tiny_store: Path) -> None:
    with pytest.raises(ValueError, match="a directory, but not a forecast"):
        check_output(tiny_store, overwrite=True)
    assert (tiny_store / "fields").is_dir()


@pytest.mark.parametrize("name", ["forecast", "forecast.grib", "forecast.nc.gz"])
def test_an_unknown_suffix_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=re.escape("must end in .zarr or .nc")):
        check_output(tmp_path / name)


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not exist\. Make it first"):
        check_output(tmp_path / "nowhere" / "forecast.nc")


def test_netcdf_without_its_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "netCDF4", None)
    with pytest.raises(ValueError, match=r"aqtopo\[report\].*forecast.zarr"):
        check_output(tmp_path / "forecast.nc")
    check_output(tmp_path / "forecast.zarr")


def test_a_write_that_fails_leaves_nothing_and_spares_the_old_one(
    dataset: xr.Dataset, tmp_path: Path
) -> None:
    path = tmp_path / "forecast.nc"
    write_forecast(dataset, path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_forecast(dataset.assign_attrs(broken=object()), path, overwrite=True)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_message(
    dataset: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(xr.Dataset, "to_zarr", full)
    with pytest.raises(ValueError, match=r"cannot write .*forecast.zarr: .*No space left"):
        write_forecast(dataset, tmp_path / "forecast.zarr")
    assert not list(tmp_path.iterdir())
