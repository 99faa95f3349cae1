"""The worlds of an ablation: what is true in one must be false in the other, by construction."""

from itertools import islice

import numpy as np
import pytest
import xarray as xr

from aqtopo.data.simulate.settings import SWITCHES, Setting
from aqtopo.data.simulate.simulator import build_simulator, simulate
from aqtopo.data.simulate.world import Array, World

DOMAIN = {"grid": (8, 16), "lat": (22.0, 38.0), "lon": (92.0, 124.0)}
START = int(np.datetime64("2016-04-01", "h").astype(np.int64))


def first_month(setting: Setting) -> xr.Dataset:
    return next(islice(simulate(World(years=(2016,), **DOMAIN, **SWITCHES[setting])), 1))


@pytest.fixture(scope="module")
def months() -> dict[Setting, xr.Dataset]:
    return {setting: first_month(setting) for setting in Setting}


def a_day_later(setting: Setting, **changes: float) -> Array:
    """(S, H, W) the air a day after it was polluted in the middle of the domain, in spring."""
    simulator = build_simulator(World(years=(2016,), **DOMAIN, **{**SWITCHES[setting], **changes}))
    start = np.full((6, 8, 16), 20.0, np.float32)
    start[:, 2:6, 5:11] = 200.0
    return simulator.day(START, start)[1]


def difference(first: Array, second: Array) -> float:
    return float(np.abs(first - second).mean() / first.mean())


def test_flat_has_neither_heights_nor_wind_and_still_some_weather(months: dict[Setting, xr.Dataset]) -> None:
    flat = months[Setting.FLAT]
    assert not flat["static"].sel(static_channel="elevation").values.any()
    assert not flat["fields"].sel(channel=["u", "v"]).values.any()
    assert float(flat["fields"].sel(channel="pm25").std("time").mean()) > 1.0
    assert float(flat["fields"].sel(channel="psfc").std("time").mean()) > 100.0


@pytest.mark.parametrize("setting", [Setting.RIDGES, Setting.INERT])
def test_mountains_and_strong_winds_are_in_the_inputs(
    months: dict[Setting, xr.Dataset], setting: Setting
) -> None:
    usual, world = months[Setting.REAL], months[setting]
    np.testing.assert_array_equal(world["static"], usual["static"])
    wind = ["u", "v"]
    np.testing.assert_allclose(
        world["fields"].sel(channel=wind), 1.5 * usual["fields"].sel(channel=wind), rtol=1e-4, atol=1e-4
    )


def test_in_ridges_both_wind_and_ridges_decide_where_the_air_goes() -> None:
    truth = a_day_later(Setting.RIDGES)
    assert difference(truth, a_day_later(Setting.RIDGES, ridge_blocking=0.0)) > 0.1
    assert difference(truth, a_day_later(Setting.RIDGES, wind_transport=False)) > 0.1


@pytest.mark.parametrize("setting", [Setting.FLAT, Setting.INERT])
def test_in_the_null_worlds_neither_does(setting: Setting) -> None:
    truth = a_day_later(setting)
    np.testing.assert_array_equal(truth, a_day_later(setting, wind_transport=False))
    if setting is Setting.FLAT:
        np.testing.assert_array_equal(truth, a_day_later(setting, ridge_blocking=5.0))


def test_ridges_differ_more_from_what_the_usual_world_does() -> None:
    def worth(setting: Setting) -> float:
        return difference(a_day_later(setting), a_day_later(setting, ridge_blocking=0.0))

    assert worth(Setting.RIDGES) > worth(Setting.REAL)


def test_each_world_says_what_it_is(months: dict[Setting, xr.Dataset]) -> None:
    facts = {
        setting: tuple(month.attrs[key] for key in ("flat_terrain", "ridge_blocking", "wind_strength"))
        for setting, month in months.items()
    }
    assert facts == {
        Setting.REAL: ("false", 1.0, 1.0),
        Setting.RIDGES: ("false", 2.0, 1.5),
        Setting.FLAT: ("true", 1.0, 0.0),
        Setting.INERT: ("false", 0.0, 1.5),
    }
