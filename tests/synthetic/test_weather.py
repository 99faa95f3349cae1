import numpy as np
import pytest

from aqtopo.data.grid import Grid
from aqtopo.data.topography import Topography, load_topography
from aqtopo.synthetic.circulation import STEERING, draw_waves, season
from aqtopo.synthetic.weather import LAPSE_RATE, Climate, Weather, build_climate
from aqtopo.variables import VARIABLES

CHINA = Grid((24, 48), lat=(17.0, 49.0), lon=(72.0, 136.0))


def hours_of(date: str, days: int = 1) -> np.ndarray:
    return np.datetime64(date, "h").astype(np.int64) + np.arange(24.0 * days)


@pytest.fixture(scope="module")
def topography() -> Topography:
    return load_topography(CHINA)


@pytest.fixture(scope="module")
def climate(topography: Topography) -> Climate:
    return build_climate(CHINA, topography, seed=3)


@pytest.fixture(scope="module")
def year(climate: Climate) -> Weather:
    return climate.at(np.datetime64("2016-01-01", "h").astype(np.int64) + np.arange(0.0, 8784.0, 25.0))


def test_temperature_falls_with_height_at_the_standard_lapse_rate(topography: Topography) -> None:
    hours = hours_of("2016-04-10")
    real = build_climate(CHINA, topography, seed=0).at(hours).temp
    flat = build_climate(CHINA, topography.flattened(), seed=0).at(hours).temp
    expected = np.broadcast_to(LAPSE_RATE * topography.elevation, real.shape)
    np.testing.assert_allclose(flat - real, expected, atol=0.01)


def test_pressure_is_hydrostatic(topography: Topography, year: Weather) -> None:
    plateau, sea = topography.elevation > 4500, topography.land == 0
    assert 5.0e4 < year.psfc[:, plateau].mean() < 6.0e4
    assert year.psfc[:, sea].mean() == pytest.approx(101_325, rel=0.005)


def test_winter_is_colder_than_summer_and_the_north_swings_more(climate: Climate) -> None:
    january, july = (climate.at(hours_of(f"2016-{month}-15", days=5)).temp.mean(0) for month in ("01", "07"))
    swing = (july - january).mean(axis=1)
    assert swing.min() > 2
    assert swing[-4:].mean() > swing[:4].mean() + 10


def test_season_peaks_in_january() -> None:
    assert season(hours_of("2017-01-16"))[0] == pytest.approx(1, abs=0.01)
    assert season(hours_of("2017-07-17"))[0] == pytest.approx(-1, abs=0.01)


def test_sun_stands_highest_at_local_noon_and_reaches_its_true_height_at_the_solstice(
    climate: Climate,
) -> None:
    weather = climate.at(hours_of("2016-06-21"))
    for column in (0, 24, 47):
        noon = (12 - CHINA.lon_centres[column] / 15) % 24
        highest = int(weather.sun[:, 12, column].argmax())
        assert abs((highest - noon + 12) % 24 - 12) <= 0.51
    expected = np.cos(np.radians(CHINA.lat_centres - 23.44))
    np.testing.assert_allclose(weather.sun.max(axis=(0, 2)), expected, atol=0.005)


def test_mixed_layer_is_deep_in_the_afternoon_and_shallow_at_night(
    climate: Climate, topography: Topography
) -> None:
    depth = climate.at(hours_of("2016-07-01", days=10)).depth
    by_hour = depth[:, topography.land == 1].reshape(10, 24, -1).mean(axis=(0, 2))
    assert by_hour[7] > 1200  # about 14 h local time at 105 E
    assert by_hour[18] < 500


def test_ranges_are_physical_all_year(year: Weather) -> None:
    for name in ("u", "v", "temp", "rh", "psfc"):
        values, (lowest, highest) = getattr(year, name), VARIABLES[name].valid_range
        assert values.dtype == np.float32
        assert lowest <= values.min() <= values.max() <= highest
    speed = np.hypot(year.u, year.v)
    assert 1.5 < speed.mean() < 6
    assert speed.max() < 40


def test_wind_persists_for_hours_and_changes_over_days(climate: Climate) -> None:
    u = climate.at(hours_of("2016-02-01", days=20)).u
    u = u - u.mean(axis=0)
    correlation = {lag: float((u[lag:] * u[:-lag]).mean() / (u * u).mean()) for lag in (6, 96)}
    assert correlation[6] > 0.85
    assert abs(correlation[96]) < 0.5


def test_terrain_turns_the_flow_along_steep_slopes_and_slows_it(topography: Topography) -> None:
    hours = hours_of("2016-01-10", days=4)
    real = build_climate(CHINA, topography, seed=5).at(hours)
    flat = build_climate(CHINA, topography.flattened(), seed=5).at(hours)
    north, east = (
        np.gradient(topography.elevation, CHINA.dy, axis=0),
        np.gradient(topography.elevation, axis=1) / CHINA.dx,
    )
    steep = np.hypot(north, east) > 0.008
    assert steep.sum() > 20

    def climbing(weather: Weather) -> float:
        daily = [field.reshape(4, 24, *CHINA.shape).mean(1) for field in (weather.u, weather.v)]
        return float(np.abs(daily[0] * east + daily[1] * north)[:, steep].mean())

    assert climbing(real) < 0.5 * climbing(flat)
    assert np.hypot(real.u, real.v)[:, steep].mean() < np.hypot(flat.u, flat.v)[:, steep].mean()


def test_sea_breeze_blows_onshore_in_the_afternoon(topography: Topography) -> None:
    weather = build_climate(CHINA, topography, seed=0).at(hours_of("2016-07-01", days=10))
    row, column = (
        int((22.0 - 17) / 32 * 24),
        int((113.5 - 72) / 64 * 48),
    )  # the coast of Guangdong faces south
    by_hour = weather.v[:, row, column].reshape(10, 24).mean(0)
    assert by_hour[7] - by_hour[19] > 1  # 15 h and 3 h local solar time


def test_waves_obey_the_dispersion_relation_and_long_ones_lag() -> None:
    waves = draw_waves(seed=11, latitude=33.0)
    speed = waves.omega / waves.k / 3600
    assert (speed < STEERING).all()
    order = np.argsort(waves.k**2 + waves.l**2)
    assert (np.diff(speed[order]) > 0).all()


def test_weather_at_an_hour_does_not_depend_on_the_hours_around_it(climate: Climate) -> None:
    hours = hours_of("2018-03-03")
    whole, part = climate.at(hours), climate.at(hours[5:6])
    np.testing.assert_allclose(whole.psfc[5:6], part.psfc, rtol=1e-6)
