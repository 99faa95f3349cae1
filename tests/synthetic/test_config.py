"""Scenarios of ablations: terrain and wind matter in one and not in the others, by construction."""

from itertools import islice

import numpy as np
import pytest
import xarray as xr

from aqtopo.data.grid import Array
from aqtopo.synthetic.config import SCENARIO_OPTIONS, Scenario, SimulationConfig
from aqtopo.synthetic.simulator import build_simulator, simulate

DOMAIN = {"grid": (8, 16), "lat": (22.0, 38.0), "lon": (92.0, 124.0)}
START = int(np.datetime64("2016-04-01", "h").astype(np.int64))


def first_month(scenario: Scenario) -> xr.Dataset:
    return next(islice(simulate(SimulationConfig(years=(2016,), **DOMAIN, **SCENARIO_OPTIONS[scenario])), 1))


@pytest.fixture(scope="module")
def months() -> dict[Scenario, xr.Dataset]:
    return {scenario: first_month(scenario) for scenario in Scenario}


def a_day_later(scenario: Scenario, **changes: float) -> Array:
    """Return the state (S, H, W) a spring day after pollution in the middle of the domain."""
    simulator = build_simulator(
        SimulationConfig(years=(2016,), **DOMAIN, **{**SCENARIO_OPTIONS[scenario], **changes})
    )
    start = np.full((6, 8, 16), 20.0, np.float32)
    start[:, 2:6, 5:11] = 200.0
    return simulator.day(START, start)[1]


def difference(first: Array, second: Array) -> float:
    return float(np.abs(first - second).mean() / first.mean())


def test_flat_has_no_elevation_and_no_wind_but_variable_weather(months: dict[Scenario, xr.Dataset]) -> None:
    flat, real = months[Scenario.FLAT], months[Scenario.REAL]
    mask = {"static_channel": "mask"}
    np.testing.assert_array_equal(flat["static"].sel(mask), real["static"].sel(mask))
    assert not flat["static"].sel(static_channel="elevation").values.any()
    assert not flat["fields"].sel(channel=["u", "v"]).values.any()
    assert float(flat["fields"].sel(channel="pm25").std("time").mean()) > 1.0
    assert float(flat["fields"].sel(channel="psfc").std("time").mean()) > 100.0


@pytest.mark.parametrize("scenario", [Scenario.RIDGES, Scenario.INERT])
def test_ridges_and_inert_have_real_terrain_and_stronger_winds(
    months: dict[Scenario, xr.Dataset], scenario: Scenario
) -> None:
    usual, changed = months[Scenario.REAL], months[scenario]
    np.testing.assert_array_equal(changed["static"], usual["static"])
    wind = ["u", "v"]
    np.testing.assert_allclose(
        changed["fields"].sel(channel=wind), 1.5 * usual["fields"].sel(channel=wind), rtol=1e-4, atol=1e-4
    )


def test_wind_and_ridges_determine_transport_in_ridges() -> None:
    truth = a_day_later(Scenario.RIDGES)
    assert difference(truth, a_day_later(Scenario.RIDGES, ridge_blocking=0.0)) > 0.1
    assert difference(truth, a_day_later(Scenario.RIDGES, wind_transport=False)) > 0.1


@pytest.mark.parametrize("scenario", [Scenario.FLAT, Scenario.INERT])
def test_wind_and_ridges_do_not_matter_in_null_scenarios(scenario: Scenario) -> None:
    truth = a_day_later(scenario)
    np.testing.assert_array_equal(truth, a_day_later(scenario, wind_transport=False))
    if scenario is Scenario.FLAT:
        np.testing.assert_array_equal(truth, a_day_later(scenario, ridge_blocking=5.0))


def test_ridge_blocking_matters_more_in_ridges_than_in_real() -> None:
    def effect_of_blocking(scenario: Scenario) -> float:
        return difference(a_day_later(scenario), a_day_later(scenario, ridge_blocking=0.0))

    assert effect_of_blocking(Scenario.RIDGES) > effect_of_blocking(Scenario.REAL)


def test_attributes_record_the_scenario(months: dict[Scenario, xr.Dataset]) -> None:
    found = {
        scenario: tuple(month.attrs[key] for key in ("flat_terrain", "ridge_blocking", "wind_strength"))
        for scenario, month in months.items()
    }
    assert found == {
        Scenario.REAL: ("false", 1.0, 1.0),
        Scenario.RIDGES: ("false", 2.0, 1.5),
        Scenario.FLAT: ("true", 1.0, 0.0),
        Scenario.INERT: ("false", 0.0, 1.5),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"years": ()}, "at least one"),
        ({"years": (2017, 2016)}, r"\[2017, 2016\].*ascending"),
        ({"years": (2016, 2016)}, r"\[2016, 2016\].*once"),
        ({"years": (1066,)}, "Use 1970 to 2200"),
        ({"seed": -1}, "seed = -1 is negative"),
        ({"ridge_blocking": -0.5}, "ridge_blocking = -0.5"),
        ({"wind_strength": -1.0}, "wind_strength = -1.0"),
    ],
)
def test_invalid_configurations_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SimulationConfig(**{"years": (2016,), **change})  # type: ignore[arg-type]


def test_days_count_leap_years() -> None:
    assert SimulationConfig(years=(2015, 2016)).days == 365 + 366
