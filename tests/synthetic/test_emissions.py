import numpy as np
import pytest

from aqtopo.data.grid import Grid
from aqtopo.data.topography import load_topography
from aqtopo.synthetic.emissions import DUST_THRESHOLD, Emissions, Species, build_emissions
from aqtopo.synthetic.weather import Weather

CHINA = Grid((16, 32), lat=(17.0, 49.0), lon=(72.0, 136.0))
BEIJING = (int((39.9 - 17) / 2), int((116.4 - 72) / 2))
GUANGZHOU = (int((23.1 - 17) / 2), int((113.3 - 72) / 2))


@pytest.fixture(scope="module")
def emissions() -> Emissions:
    return build_emissions(CHINA, load_topography(CHINA))


def calm(hours: int, u: float = 1.0, rh: float = 30.0) -> Weather:
    blank = np.zeros((hours, *CHINA.shape), np.float32)
    return Weather(blank + np.float32(u), blank, blank, blank + np.float32(rh), blank, blank, blank)


def day(date: str) -> np.ndarray:
    return np.datetime64(date, "h").astype(np.int64) + np.arange(24.0)


def test_traffic_peaks_at_the_local_rush_hours(emissions: Emissions) -> None:
    nox = emissions.at(day("2016-06-01"), calm(24))[:, Species.NOX, *BEIJING]
    local = (np.arange(24) + 116 / 15) % 24
    assert abs(local[nox.argmax()] - 8) < 1.5 or abs(local[nox.argmax()] - 17.5) < 1.5
    assert 2 <= local[nox.argmin()] <= 5


def test_emissions_are_lower_on_weekends(emissions: Emissions) -> None:
    # 2016-06-04 was a Saturday.
    totals = {d: emissions.at(day(d), calm(24))[8:, Species.NOX].sum() for d in ("2016-06-03", "2016-06-04")}
    assert totals["2016-06-04"] < 0.95 * totals["2016-06-03"]


def test_heating_adds_to_the_north_in_winter_only(emissions: Emissions) -> None:
    # Both days are Wednesdays.
    winter, summer = (
        emissions.at(day(d), calm(24))[:, Species.SO2].sum(0) for d in ("2016-01-13", "2016-07-13")
    )
    ratio = winter / np.maximum(summer, 1e-9)
    assert ratio[BEIJING] > 1.6
    assert ratio[GUANGZHOU] < 1.1


def test_dust_needs_strong_wind_and_dry_ground(emissions: Emissions) -> None:
    hours = day("2016-04-01")
    coarse = [
        emissions.at(hours, calm(24, u, rh))[:, Species.COARSE].sum()
        for u, rh in ((DUST_THRESHOLD, 30.0), (12.0, 30.0), (12.0, 90.0))
    ]
    assert coarse[1] > 3 * coarse[0]
    assert coarse[2] == coarse[0]


def test_annual_emission_per_head_matches_the_inventory(emissions: Emissions) -> None:
    year = np.datetime64("2017-01-01", "h").astype(np.int64) + np.arange(0, 8760.0, 7)
    mean = np.mean([emissions.at(year[i : i + 1], calm(1))[0, Species.NOX] for i in range(len(year))], axis=0)
    assert mean.sum() == pytest.approx(float(emissions.per_hour[Species.NOX].sum()), rel=0.08)
