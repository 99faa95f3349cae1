import re
import sys
import warnings
from pathlib import Path

import netCDF4
import numpy as np
import pytest
import xarray as xr

from aqtopo.inference.forecast_file import check_output, lead_time_dataset, write_forecast
from aqtopo.variables import HORIZONS_H, TARGET_VARIABLES, VARIABLES

LAT, LON = np.array([40.0, 35.0, 30.0]), np.array([100.0, 110.0])
INIT = np.datetime64("2018-12-30T06", "h")


@pytest.fixture
def values() -> np.ndarray:
    shape = (len(HORIZONS_H), len(TARGET_VARIABLES), LAT.size, LON.size)
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.fixture
def dataset(values: np.ndarray) -> xr.Dataset:
    return lead_time_dataset(
        values,
        init_time=INIT,
        pollutants=[VARIABLES[name] for name in TARGET_VARIABLES],
        horizons_h=HORIZONS_H,
        lat=LAT,
        lon=LON,
    )


def test_every_pollutant_is_a_variable_with_its_own_values(dataset: xr.Dataset, values: np.ndarray) -> None:
    assert tuple(dataset.data_vars) == TARGET_VARIABLES
    for c, name in enumerate(TARGET_VARIABLES):
        assert dataset[name].dims == ("lead_time", "lat", "lon")
        assert dataset[name].dtype == np.float32
        np.testing.assert_array_equal(dataset[name], values[:, c])


@pytest.mark.parametrize("name", TARGET_VARIABLES)
def test_pollutants_have_units_and_names(dataset: xr.Dataset, name: str) -> None:
    assert dataset[name].attrs == {
        "units": "ug m-3",
        "standard_name": VARIABLES[name].standard_name,
        "long_name": VARIABLES[name].long_name,
    }
    assert dataset[name].attrs["standard_name"].startswith("mass_concentration_of_")


@pytest.mark.parametrize(
    ("name", "standard_name", "units"),
    [
        ("init_time", "forecast_reference_time", None),
        ("lead_time", "forecast_period", "hours"),
        ("time", "time", None),
        ("lat", "latitude", "degrees_north"),
        ("lon", "longitude", "degrees_east"),
    ],
)
def test_coordinates_are_described(
    dataset: xr.Dataset, name: str, standard_name: str, units: str | None
) -> None:
    assert dataset[name].attrs["standard_name"] == standard_name
    assert dataset[name].attrs.get("units") == units


def test_valid_time_is_the_initial_time_plus_the_lead_time_across_the_new_year(dataset: xr.Dataset) -> None:
    assert dataset["init_time"].shape == ()
    assert dataset["init_time"] == INIT
    np.testing.assert_array_equal(dataset["lead_time"], HORIZONS_H)
    assert dataset["time"].values[-1] == np.datetime64("2019-01-03T06")
    np.testing.assert_array_equal(
        dataset["time"] - dataset["init_time"], dataset["lead_time"].values.astype("timedelta64[h]")
    )


def test_rows_keep_the_direction_of_the_latitude_axis(dataset: xr.Dataset) -> None:
    np.testing.assert_array_equal(dataset["lat"], LAT)
    np.testing.assert_array_equal(dataset["lon"], LON)


def test_the_conventions_attribute_is_set(dataset: xr.Dataset) -> None:
    assert dataset.attrs["Conventions"] == "CF-1.11"


@pytest.fixture
def gappy() -> xr.Dataset:
    values = np.random.default_rng(0).normal(30.0, 20.0, (2, 2, 3, 4)).astype(np.float32)
    values[0, 0, 0, 0] = np.nan
    made = lead_time_dataset(
        values,
        init_time=np.datetime64("2018-01-15T00", "h"),
        pollutants=[VARIABLES["pm25"], VARIABLES["o3"]],
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
    gappy: xr.Dataset, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"forecast{suffix}"
    write_forecast(gappy, path)
    xr.testing.assert_identical(read(path), gappy)
    assert list(tmp_path.iterdir()) == [path]


def test_netcdf_has_the_attributes_that_cf_readers_look_for(gappy: xr.Dataset, tmp_path: Path) -> None:
    path = tmp_path / "forecast.nc"
    write_forecast(gappy, path)
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
    gappy: xr.Dataset, tmp_path: Path, suffix: str
) -> None:
    path, other = tmp_path / f"forecast{suffix}", tmp_path / f"forecast{suffix}.partial"
    other.mkdir()  # somebody else's
    write_forecast(gappy, path)
    assert other.is_dir()
    with pytest.raises(ValueError, match=r"exists already.*--overwrite"):
        write_forecast(gappy + 1.0, path)
    xr.testing.assert_identical(read(path), gappy)
    write_forecast(gappy.isel(lead_time=[0]), path, overwrite=True)
    xr.testing.assert_identical(read(path), gappy.isel(lead_time=[0]))


def test_a_directory_that_is_no_forecast_is_not_replaced(tiny_store: Path) -> None:
    with pytest.raises(ValueError, match="a directory, but not a forecast"):
        check_output(tiny_store, overwrite=True)
    assert (tiny_store / "fields").is_dir()


@pytest.mark.parametrize("name", ["forecast", "forecast.grib", "forecast.nc.gz"])
def test_an_unknown_suffix_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=re.escape("must end in .zarr or .nc")):
        check_output(tmp_path / name)


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not exist\. Create it first"):
        check_output(tmp_path / "nowhere" / "forecast.nc")


def test_netcdf_without_its_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "netCDF4", None)
    with pytest.raises(ValueError, match=r"aqtopo\[report\].*forecast.zarr"):
        check_output(tmp_path / "forecast.nc")
    check_output(tmp_path / "forecast.zarr")


def test_a_failed_write_keeps_the_old_file_and_no_temporary_one(gappy: xr.Dataset, tmp_path: Path) -> None:
    path = tmp_path / "forecast.nc"
    write_forecast(gappy, path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_forecast(gappy.assign_attrs(broken=object()), path, overwrite=True)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", ["nc", "zarr"])
def test_a_full_disk_is_one_message(gappy: xr.Dataset, full_disk: Path, suffix: str) -> None:
    with pytest.raises(ValueError, match=rf"cannot write .*forecast.{suffix}: .*No space left"):
        write_forecast(gappy, full_disk / f"forecast.{suffix}")
    assert [path.name for path in full_disk.iterdir()] == ["filler"]
