from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqtopo.data.grid import Array
from aqtopo.synthetic.chemistry import (
    BACKGROUND,
    O3_PER_NO2,
    build_rates,
    photostationary,
    rain_intensity,
    react,
)
from aqtopo.synthetic.emissions import Species
from aqtopo.synthetic.weather import Weather

HOURS, SHAPE = 6, (3, 4)


def weather(**values: float) -> Weather:
    usual = {"u": 1, "v": 0, "temp": 290, "rh": 50, "psfc": 1e5, "sun": 0, "depth": 500}
    return Weather(**{k: np.full((HOURS, *SHAPE), x, np.float32) for k, x in {**usual, **values}.items()})


def run(conditions: Weather, start: Array, emission: float = 0.0, next_depth: Array | None = None) -> Array:
    flux = np.full((HOURS, len(Species), *SHAPE), emission, np.float32)
    depth = conditions.depth if next_depth is None else next_depth
    rates = build_rates(conditions, depth, flux, np.ones(SHAPE, np.float32))
    state = np.broadcast_to(start, (len(Species), *SHAPE)).astype(np.float32)
    for hour in range(HOURS):
        react(state, rates, hour)
    return state[:, 0, 0]


POLLUTED = np.array([40, 30, 50, 900, 80, 120], np.float32)[:, None, None]


def test_titration_at_night_consumes_no_or_ozone() -> None:
    nox, ox, night = (np.array(x, np.float32) for x in ([10.0, 100.0], [80.0, 40.0], [0.0, 0.0]))
    no2, o3 = photostationary(nox, ox, np.full(2, 285, np.float32), night)
    np.testing.assert_allclose(no2, [10.0, 40.0 * 46 / 48], rtol=1e-3)
    np.testing.assert_allclose(o3, [80.0 - 10.0 * 48 / 46, 0.0], atol=0.05)


@given(st.floats(0, 400), st.floats(0, 400), st.floats(0.1, 1), st.floats(250, 310))
def test_photostationary_state_balances_photolysis_and_titration(
    nox: float, ox: float, sun: float, temp: float
) -> None:
    no2, o3 = photostationary(*(np.array([x], np.float64) for x in (nox, ox, temp, sun)))
    assert 0 <= no2[0] <= nox * (1 + 1e-9)
    assert o3[0] + O3_PER_NO2 * no2[0] == pytest.approx(ox, abs=1e-4)
    photolysis = 0.0167 * np.exp(-0.575 / sun)
    molecules = 6.022e23 / 46 * 1e-12
    titration = 3.0e-12 * np.exp(-1500 / temp) * (nox - no2[0]) * molecules * o3[0] * 46 / 48 * molecules
    assert titration == pytest.approx(photolysis * no2[0] * molecules, rel=1e-3, abs=1e3)


def test_photolysis_converts_no2_to_ozone() -> None:
    nox, ox, temp = (np.array([x], np.float32) for x in (40.0, 60.0, 295.0))
    noon, night = (photostationary(nox, ox, temp, np.array([s], np.float32)) for s in (0.9, 0.0))
    assert noon[1][0] > night[1][0] + 5
    assert noon[0][0] < night[0][0]


def test_ozone_production_peaks_at_moderate_nox() -> None:
    def ox_after(nox: float, sun: float) -> float:
        start = POLLUTED.copy()
        start[Species.NOX] = nox
        return float(run(weather(sun=sun, temp=303), start)[Species.OX])

    assert ox_after(20, sun=0.9) > ox_after(20, sun=0.0) + 10
    assert ox_after(20, sun=0.9) > ox_after(1, sun=0.9)
    assert ox_after(20, sun=0.9) > ox_after(400, sun=0.9)


def test_so2_forms_particles_faster_in_moist_air() -> None:
    dry, moist = (run(weather(rh=rh), POLLUTED) for rh in (30.0, 77.0))
    assert moist[Species.SO2] < dry[Species.SO2] < 30
    assert moist[Species.PM25] > dry[Species.PM25]


def test_rain_removes_particles_but_not_co() -> None:
    dry, wet = (run(weather(rh=rh), POLLUTED) for rh in (77.0, 96.0))
    assert wet[Species.COARSE] < 0.5 * dry[Species.COARSE]
    assert wet[Species.CO] == pytest.approx(dry[Species.CO])
    assert rain_intensity(np.array([50.0, 78.0, 95.0, 100.0])).tolist() == [0, 0, 1, 1]


def test_emission_raises_shallow_layers_more_than_deep_ones() -> None:
    shallow, deep = (run(weather(depth=depth), POLLUTED, emission=2000.0) for depth in (200.0, 1500.0))
    gained_shallow = shallow[Species.CO] - 900
    gained_deep = deep[Species.CO] - 900
    assert gained_shallow > 20 > gained_deep


def test_a_growing_mixed_layer_entrains_cleaner_air() -> None:
    conditions = weather(depth=300)
    growing = run(conditions, POLLUTED, next_depth=conditions.depth * 1.5)
    resting = run(conditions, POLLUTED)
    assert growing[Species.CO] < resting[Species.CO]


def test_background_air_stays_near_the_background_without_emission() -> None:
    after = run(weather(sun=0.3), BACKGROUND)
    np.testing.assert_allclose(after, BACKGROUND[:, 0, 0], rtol=0.25)


@given(
    st.floats(0, 1000, width=32),
    st.floats(0, 1, width=32),
    st.floats(200, 315, width=32),
    st.floats(0, 100, width=32),
    st.floats(120, 3500, width=32),
)
def test_concentrations_stay_positive_and_finite(
    level: float, sun: float, temp: float, rh: float, depth: float
) -> None:
    start = np.full((len(Species), 1, 1), level, np.float32)
    after = run(weather(sun=sun, temp=temp, rh=rh, depth=depth), start, emission=100.0)
    assert np.isfinite(after).all()
    assert (after >= 0).all()


def test_rates_keep_the_precision_of_the_weather() -> None:
    conditions = weather()
    flux = np.zeros((HOURS, len(Species), *SHAPE), np.float32)
    rates = build_rates(conditions, conditions.depth, flux, np.ones(SHAPE, np.float32))
    assert {field.dtype for field in vars(rates).values()} == {np.dtype(np.float32)}
    assert replace(rates).keep is rates.keep
