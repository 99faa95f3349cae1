"""Axes as other programs write them, brought to one form."""

from collections.abc import Callable

import numpy as np
import pytest
import xarray as xr

from aqtopo.data.channels import read_channel
from aqtopo.data.coordinates import continuous_longitudes, rows_of
from aqtopo.data.outside import normalise
from aqtopo.variables import VARIABLES
from tests.data.outside_files import LAT, LON, make_forecasts, make_hours

PM25 = VARIABLES["pm25"]
Change = Callable[[xr.Dataset], xr.Dataset]


def pm25(dataset: xr.Dataset) -> xr.DataArray:
    return read_channel(normalise(dataset, "a.nc"), PM25).values


def bare(dataset: xr.Dataset) -> xr.Dataset:
    """Return the dataset without the attributes of its coordinates."""
    return dataset.assign_coords({name: dataset[name].drop_attrs() for name in dataset.coords})


HARMLESS: dict[str, Change] = {
    "long names": lambda d: bare(d).rename(lat="latitude", lon="longitude", time="valid_time"),
    "x and y": lambda d: bare(d).rename(lat="y", lon="x"),
    "capitals": lambda d: bare(d).rename(lat="LAT", lon="LON"),
    "by standard name": lambda d: d.rename(lat="rows", lon="columns"),
    "by units": lambda d: d.rename(lat="rows", lon="columns").assign_coords(
        rows=("rows", LAT, {"units": "degree_north"}), columns=("columns", LON, {"units": "degreesE"})
    ),
    "coordinates on other dimensions": lambda d: d.rename(lat="south_north", lon="west_east").assign_coords(
        lat=("south_north", LAT), lon=("west_east", LON)
    ).drop_vars(["south_north", "west_east"]),
    "coordinates as variables": lambda d: d.rename(lat="j", lon="i").assign(
        lat=("j", LAT), lon=("i", LON)
    ).drop_vars(["i", "j"]),
    "north first": lambda d: d.isel(lat=slice(None, None, -1)),
    "shuffled": lambda d: d.isel(lat=[3, 0, 1, 5, 4, 2], lon=[1, 0, 2, 3, 4, 5, 7, 6], time=[1, 2, 0]),
    "other order of dimensions": lambda d: d.transpose("lon", "time", "lat"),
    "one level": lambda d: d.expand_dims(level=[1000.0], axis=1),
    "a scalar height": lambda d: d.assign_coords(height=2.0),
    "longitudes below -180": lambda d: d.assign_coords(lon=LON - 360),
    "float32 coordinates": lambda d: d.assign_coords(lat=LAT.astype("f4"), lon=LON.astype("f4")),
    "an analysis of step 0": lambda d: d.assign_coords(step=np.timedelta64(0, "h")),
    "time as forecast_reference_time of step 0": lambda d: d.assign_coords(
        step=np.timedelta64(0, "ns"), valid_time=("time", d["time"].values)
    ),
    "bounds": lambda d: d.assign(lat_bnds=(("lat", "bnds"), np.zeros((6, 2)))),
}  # fmt: skip


@pytest.mark.parametrize("form", HARMLESS)
def test_hourly_fields_of_another_form_are_the_same(form: str) -> None:
    hours = make_hours()
    found = pm25(HARMLESS[form](hours))
    assert found.dims == ("time", "lat", "lon")
    np.testing.assert_array_equal(found, hours["pm25"])
    for axis in ("time", "lat", "lon"):
        np.testing.assert_array_equal(found[axis], hours[axis])


FORECASTS: dict[str, Change] = {
    "WeatherBench": lambda d: d.rename(init_time="time", lead_time="prediction_timedelta").assign_coords(
        prediction_timedelta=np.array([12, 24]) * np.timedelta64(1, "h")
    ),
    "cfgrib": lambda d: d.rename(init_time="time", lead_time="step").assign_coords(
        step=np.array([12, 24]) * np.timedelta64(1, "h"),
        valid_time=(("time", "step"), d["init_time"].values[:, None] + np.array([12, 24], "m8[h]")),
    ),
    "CAMS": lambda d: d.rename(init_time="forecast_reference_time", lead_time="forecast_period"),
    "by standard name": lambda d: d.rename(init_time="a", lead_time="b").assign_coords(
        a=("a", d["init_time"].values, {"standard_name": "forecast_reference_time"}),
        b=("b", [12, 24], {"standard_name": "forecast_period", "units": "hours"}),
    ),
    "days": lambda d: d.assign_coords(lead_time=("lead_time", [0.5, 1.0], {"units": "days"})),
    "seconds": lambda d: d.assign_coords(lead_time=("lead_time", [43200, 86400], {"units": "seconds"})),
    "minutes": lambda d: d.assign_coords(lead_time=("lead_time", [720, 1440], {"units": "minutes"})),
    "nanoseconds": lambda d: d.assign_coords(
        lead_time=("lead_time", np.array([12, 24]) * 3600 * 10**9, {"units": "nanoseconds"})
    ),
    "the last first": lambda d: d.isel(lead_time=[1, 0], init_time=[1, 0]),
}  # fmt: skip


@pytest.mark.parametrize("form", FORECASTS)
def test_forecasts_of_another_form_are_the_same(form: str) -> None:
    forecasts = make_forecasts()
    found = pm25(FORECASTS[form](forecasts))
    assert found.dims == ("init_time", "lead_time", "lat", "lon")
    np.testing.assert_array_equal(found, forecasts["pm25"])
    np.testing.assert_array_equal(found["lead_time"], [12.0, 24.0])
    np.testing.assert_array_equal(found["init_time"], forecasts["init_time"])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (np.arange(336.5, 396) % 360, np.arange(-23.5, 36)),
        (np.sort(np.arange(336.5, 396) % 360), np.arange(-23.5, 36)),
        (np.arange(0.0, 360.0), np.arange(-180.0, 180.0)),
        (np.arange(170.0, 191.0), np.arange(170.0, 191.0)),
        (np.sort((np.arange(170.0, 191.0) + 180) % 360 - 180), np.arange(170.0, 191.0)),
        (np.array([100.0]), np.array([100.0])),
    ],
)
def test_longitudes_are_brought_to_one_convention(given: np.ndarray, expected: np.ndarray) -> None:
    values, order = continuous_longitudes(given)
    np.testing.assert_allclose(values, expected)
    np.testing.assert_allclose((given[order] - expected + 180) % 360 - 180, 0.0, atol=1e-9)


def test_fields_follow_their_longitudes() -> None:
    hours = make_hours(lon=np.arange(-4.0, 4.0))
    turned = hours.assign_coords(lon=hours["lon"] % 360).sortby("lon")
    xr.testing.assert_equal(pm25(turned), pm25(hours))


def test_rows_are_found_modulo_360() -> None:
    assert rows_of(np.array([358.0, 359.0, 0.0]), np.array([-1.0, -2.0]), 360.0).tolist() == [1, 0]
    assert rows_of(np.array([20.0, 21.0]), np.array([20.5])) is None


def curvilinear(d: xr.Dataset) -> xr.Dataset:
    lat, lon = np.meshgrid(LAT, LON, indexing="ij")
    plain = d.rename(lat="y", lon="x").drop_vars(["y", "x"])
    return plain.assign_coords(lat2d=(("y", "x"), lat), lon2d=(("y", "x"), lon + lat / 10))


def test_curvilinear_coordinates_are_kept() -> None:
    found = normalise(curvilinear(make_hours()), "wrf.nc")
    assert found["lat"].dims == found["lon"].dims == ("y", "x")
    numbered = curvilinear(make_hours()).assign_coords(y=range(6), x=range(8))
    assert normalise(numbered, "wrf.nc")["lat"].dims == ("y", "x")


HARMFUL: dict[str, tuple[Change, str]] = {
    "torn": (
        lambda d: d.assign_coords(lon=np.array([1.0, 2, 3, 4, 356, 357, 358, 359])),
        r"a\.nc has a jump in longitude from -1 to 1, where the other steps are 1\..*without missing columns",
    ),
    "missing row": (lambda d: d.isel(lat=[0, 1, 3, 4, 5]), "a jump in latitude from 21 to 23"),
    "missing column": (lambda d: d.isel(lon=[0, 1, 2, 4, 5, 6, 7]), "a jump in longitude from 102 to 104"),
    "repeated row": (lambda d: d.isel(lat=[0, 0, 1, 2, 3, 4]), "the latitude 20 more than once"),
    "cyclic column": (
        lambda _: make_hours(lon=np.linspace(0.0, 360.0, 9)),
        "longitude .* more than once.*last column of a cyclic",
    ),
    "irregular": (lambda d: d.assign_coords(lat=[20, 21, 22.3, 23, 24, 25]), "irregular steps in latitude"),
    "exchanged": (
        lambda d: d.assign_coords(lat=("lat", LAT + 90)),
        r"latitude 110\.0, which is not within -90 to 90.*exchanged",
    ),
    "NaN": (lambda d: d.assign_coords(lat=[20, 21, np.nan, 23, 24, 25]), "the latitude nan"),
    "projected": (
        lambda d: bare(d).rename(lat="y", lon="x").assign_coords(y=("y", LAT * 1e5, {"units": "m"})),
        "latitude in 'm' instead of degrees: it is on a projected grid",
    ),
    "no longitude": (lambda d: d.drop_vars("lon"), "without the longitudes of its cells"),
    "two latitudes": (
        lambda d: d.assign_coords(latitude_v=("latitude_v", LAT + 0.5, {"standard_name": "latitude"})),
        "more than one latitude: lat, latitude_v",
    ),
    "points": (
        lambda d: d.isel(lat=xr.DataArray(range(6), dims="p"), lon=xr.DataArray(range(6), dims="p")),
        "a list of points, not a grid",
    ),
    "longitudes of times": (
        lambda d: d.drop_vars("lon").assign_coords(lon=("time", [1.0, 2.0, 3.0])),
        "has dimensions that cannot be told from its axes: .*longitude lon",
    ),
    "an hour twice": (lambda d: d.isel(time=[0, 0, 1]), "the time 2016-01-01T00:00 more than once"),
    "missing time": (
        lambda d: d.assign_coords(time=np.array(["2016-01-01", "NaT", "2016-01-02"], "M8[ns]")),
        "a missing time",
    ),
    "times as numbers": (lambda d: d.assign_coords(time=[2016010100, 2016010101, 2016010102]), "type int64"),
    "times as text": (lambda d: d.assign_coords(time=["2016-01-01T00", "2016-01-01T01", "x"]), "of the type"),
    "several levels": (
        lambda d: d.expand_dims(level=[1000, 850]),
        r"has pm25 on the further dimension level \(size 2\).*isel\(level=0\)",
    ),
    "members": (lambda d: d.expand_dims(number=3), r"further dimension number \(size 3\)"),
}  # fmt: skip


@pytest.mark.parametrize("fault", HARMFUL)
def test_unusable_axes_are_refused_by_name(fault: str) -> None:
    change, message = HARMFUL[fault]
    with pytest.raises(ValueError, match=message):
        pm25(change(make_hours()))


@pytest.mark.parametrize(
    ("values", "attributes", "message"),
    [
        ([12, 24], {}, "has lead times without units.*`units` of the lead time"),
        ([12, 24], {"units": "K"}, "has lead times in 'K'.*'hours'"),
        ([12, 12], {"units": "hours"}, r"has a lead time twice \(12, 12 h\)"),
        ([12, np.nan], {"units": "hours"}, "a missing lead time"),
    ],
)
def test_unusable_lead_times_are_refused(
    values: list[float], attributes: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pm25(make_forecasts().assign_coords(lead_time=("lead_time", values, attributes)))
