import numpy as np
import pytest

from aqtopo.data.forcings import FORCINGS, forcing

LAT, LON = np.array([-30.0, 0.0, 45.0]), np.array([0.0, 90.0, 120.0, 255.0])


@pytest.mark.parametrize(("lon", "utc_noon"), [(0.0, 12), (90.0, 6), (120.0, 4), (255.0, 19)])
def test_local_noon_is_the_lowest_cosine_of_the_local_time(lon: float, utc_noon: int) -> None:
    hours = np.arange("2018-03-01T00", "2018-03-02T00", dtype="datetime64[h]")
    cosines = forcing("cos_local_time", hours, LAT, np.array([lon]))[:, 0, 0]
    assert int(cosines.argmin()) == utc_noon
    assert cosines.min() == pytest.approx(-1.0)


def test_longitudes_may_be_in_either_convention() -> None:
    times = np.array(["2018-07-01T05", "2018-12-31T23"], "datetime64[h]")
    for name in FORCINGS:
        west = forcing(name, times, LAT, LON - 360.0 * (LON > 180.0))
        np.testing.assert_allclose(forcing(name, times, LAT, LON), west, atol=1e-6)


def test_seasons_turn_once_a_year_and_not_with_the_place() -> None:
    days = np.arange("2016-01-01T00", "2020-01-01T00", 24, dtype="datetime64[h]")
    values = forcing("cos_julian_day", days, LAT, LON)[:, 0, 0]
    assert np.count_nonzero(np.diff(np.sign(values))) == 8
    assert np.ptp(forcing("sin_julian_day", days[40:41], LAT, LON)) == 0.0


def test_insolation_is_highest_near_local_noon_and_zero_at_night() -> None:
    hours = np.arange("2018-06-21T00", "2018-06-22T00", dtype="datetime64[h]")
    values = forcing("insolation", hours, LAT, LON)
    assert values.min() == 0.0
    # The solstice: zenith angle = latitude - 23.44 degrees at noon.
    assert values[:, 2, 2].max() == pytest.approx(np.cos(np.deg2rad(45.0 - 23.44)), abs=0.01)
    assert abs(int(values[:, 2, 2].argmax()) - 4) <= 1
