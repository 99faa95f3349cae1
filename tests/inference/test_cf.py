"""The layout of a forecast, as the CF conventions ask."""

import numpy as np
import pytest
import xarray as xr

from aqtopo.inference.cf import lead_time_dataset
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
        values, init_time=INIT, pollutants=TARGET_VARIABLES, horizons_h=HORIZONS_H, lat=LAT, lon=LON
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


def test_it_says_which_conventions_it_follows(dataset: xr.Dataset) -> None:
    assert dataset.attrs["Conventions"] == "CF-1.11"
