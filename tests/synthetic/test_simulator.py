from itertools import islice
from typing import Any

import numpy as np
import pytest
import xarray as xr

from aqtopo.synthetic import simulator as simulator_module
from aqtopo.synthetic.config import SimulationConfig
from aqtopo.synthetic.simulator import simulate
from aqtopo.variables import DYNAMIC_VARIABLES, STATIC_CHANNELS, TARGET_VARIABLES, VARIABLES

PM25 = DYNAMIC_VARIABLES.index("pm25")


def months(count: int, **changes: Any) -> xr.Dataset:
    config = SimulationConfig(**{"years": (2016,), "grid": (8, 12), **changes})
    return xr.concat(list(islice(simulate(config), count)), "time", data_vars="minimal")


@pytest.fixture(scope="module")
def year() -> xr.Dataset:
    return months(12, grid=(16, 32))


def channel(dataset: xr.Dataset, name: str) -> np.ndarray:
    land = dataset["static"].sel(static_channel="mask").values > 0
    values: np.ndarray = dataset["fields"].sel(channel=name).values[:, land]
    return values


def test_equal_configurations_give_the_same_bytes() -> None:
    first, second = (months(1)["fields"].values.tobytes() for _ in range(2))
    assert first == second


def test_another_seed_gives_other_weather_over_the_same_terrain() -> None:
    first, second = months(1, seed=0), months(1, seed=1)
    np.testing.assert_array_equal(first["static"], second["static"])
    assert abs(first["fields"] - second["fields"]).sel(channel="u").mean() > 1


def test_a_chunk_has_the_layout_of_the_store(year: xr.Dataset) -> None:
    assert year["fields"].dims == ("time", "channel", "lat", "lon")
    assert year["fields"].dtype == np.float32
    assert year["static"].dtype == np.float32
    assert tuple(year["channel"].values) == DYNAMIC_VARIABLES
    assert tuple(year["static_channel"].values) == STATIC_CHANNELS
    assert year.attrs["simulated"] == "yes"
    assert "not observations" in year.attrs["source"]
    assert year.attrs["seed"] == 0


def test_a_leap_year_has_every_hour_once(year: xr.Dataset) -> None:
    expected = np.arange("2016-01-01", "2017-01-01", dtype="datetime64[h]").astype("datetime64[ns]")
    np.testing.assert_array_equal(year["time"].values, expected)


def test_chunks_are_months_or_parts_of_them_on_large_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SimulationConfig(years=(2016, 2017), grid=(4, 4))
    lengths = [block.sizes["time"] // 24 for block in islice(simulate(config), 15)]
    assert lengths[:3] == [31, 29, 31]
    assert lengths[12:15] == [31, 28, 31]
    whole = np.concatenate([b["fields"].values for b in islice(simulate(config), 2)])
    monkeypatch.setattr(simulator_module, "CHUNK_BYTES", 10 * 24 * 11 * 16 * 4)
    parts = list(islice(simulate(config), 7))
    assert [block.sizes["time"] // 24 for block in parts] == [10, 10, 10, 1, 10, 10, 9]
    np.testing.assert_array_equal(np.concatenate([b["fields"].values for b in parts]), whole)


def test_a_year_continues_from_its_predecessor() -> None:
    pollution = [
        block["fields"].values[:, PM25]
        for block in simulate(SimulationConfig(years=(2015, 2016), grid=(4, 4)))
    ]
    across = np.abs(pollution[12][0] - pollution[11][-1])
    usual = np.abs(np.diff(pollution[11], axis=0))
    assert (across <= usual.max()).all()
    alone = next(simulate(SimulationConfig(years=(2016,), grid=(4, 4))))["fields"].values[:, PM25]
    assert not np.array_equal(alone[0], pollution[12][0])
    np.testing.assert_allclose(alone[-24:], pollution[12][-24:], rtol=0.01)


@pytest.mark.parametrize("name", DYNAMIC_VARIABLES)
def test_values_are_finite_and_within_their_valid_range(year: xr.Dataset, name: str) -> None:
    values = year["fields"].sel(channel=name).values
    lowest, highest = VARIABLES[name].valid_range
    assert np.isfinite(values).all()
    assert lowest <= values.min()
    assert values.max() <= highest


@pytest.mark.parametrize(
    ("name", "lowest", "highest"),
    [
        ("pm25", 10, 60),
        ("pm10", 15, 100),
        ("so2", 2, 40),
        ("no2", 3, 40),
        ("co", 150, 1000),
        ("o3", 30, 120),
        ("temp", 265, 292),
        ("rh", 35, 75),
    ],
)
def test_means_over_land_resemble_a_reanalysis(
    year: xr.Dataset, name: str, lowest: float, highest: float
) -> None:
    assert lowest < channel(year, name).mean() < highest


def test_pm10_includes_pm25(year: xr.Dataset) -> None:
    assert (channel(year, "pm10") >= channel(year, "pm25")).all()


def test_pm25_episodes_exceed_the_daily_cycle(year: xr.Dataset) -> None:
    by_hour = channel(year, "pm25").reshape(366, 24, -1)
    climatology = by_hour.mean(axis=0)
    assert (by_hour - climatology).std() > 4 * (climatology - climatology.mean(axis=0)).std()


def test_ozone_peaks_by_day_and_in_summer(year: xr.Dataset) -> None:
    ozone = channel(year, "o3").reshape(366, 24, -1)
    assert ozone[150:240].mean() > ozone[:60].mean() + 10
    assert ozone[150:240, 7].mean() > ozone[150:240, 21].mean() + 5


def test_population_and_pollution_are_correlated(year: xr.Dataset) -> None:
    people = year["static"].sel(static_channel="population").values.ravel()
    fine = year["fields"].sel(channel="pm25").values.mean(axis=0).ravel()
    assert np.corrcoef(people, fine)[0, 1] > 0.6


@pytest.mark.parametrize("change", [{"ridge_blocking": 0.0}, {"wind_transport": False}])
def test_transport_options_change_pollutants_but_not_weather(change: dict[str, Any]) -> None:
    changed, usual = months(1, **change)["fields"], months(1)["fields"]
    weather = ["u", "v", "temp", "rh", "psfc"]
    np.testing.assert_array_equal(changed.sel(channel=weather), usual.sel(channel=weather))
    difference = abs(changed - usual).sel(channel="pm25").mean() / usual.sel(channel="pm25").mean()
    assert difference > 0.02


@pytest.mark.parametrize("name", TARGET_VARIABLES)
def test_pollutants_change_smoothly_from_hour_to_hour(year: xr.Dataset, name: str) -> None:
    values = channel(year, name)
    assert np.abs(np.diff(values, axis=0)).mean() < 0.25 * values.std()
