"""Anthropogenic emissions by population, hour, weekday and heating season; and dust."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from aqtopo.data.forcings import HOURS_PER_DAY
from aqtopo.data.grid import Array, Grid
from aqtopo.data.topography import Topography
from aqtopo.synthetic.circulation import season
from aqtopo.synthetic.population import desert_fraction, population_density
from aqtopo.synthetic.weather import Weather


class Species(IntEnum):
    """Transported species, in the order of the state's first axis [ug m-3].

    NOx (as NO2) and Ox (as O3) replace NO2 and O3: photochemistry converts NO2 and O3 into each other within
    minutes, and conserves these sums.
    """

    COARSE = 0  # PM10 without PM2.5
    SO2 = 1
    NOX = 2  # NO + NO2, as mass of NO2
    CO = 3
    OX = 4  # O3 + NO2, as mass of O3
    PM25 = 5


PEOPLE = 1.39e9
TERAGRAMS = np.array([2.6, 10.5, 22.0, 136.2, 0.0, 7.6 + 7.0])
"""China's emissions in 2017 by species [Tg a-1] (Zheng et al. 2018, Atmos. Chem. Phys. 18, 14095).

PM2.5 is 7.6 Tg primary plus an assumed 7 Tg of organic vapours that condense within hours.
"""
UG_PER_HEAD_HOUR = TERAGRAMS * 1e18 / PEOPLE / (365.25 * HOURS_PER_DAY)
"""[ug h-1]"""
PRIMARY_NO2 = 0.1
"""Share of NOx that is emitted as NO2 and so adds to Ox."""

HEATING = np.array([0.3, 0.9, 0.15, 0.8, 0.15, 0.9])
"""Additional emission in midwinter in the north, relative to the annual mean."""
TRAFFIC = np.array([0.5, 0.2, 0.8, 0.6, 0.8, 0.4])
"""Share of a species that follows the daily traffic; the rest is constant."""
RUSH_HOURS = np.array(
    [
        (38, 28, 24, 24, 34, 60),
        (98, 142, 160, 136, 116, 112),
        (112, 112, 116, 124, 138, 158),
        (162, 138, 112, 92, 74, 54),
    ]
).ravel()
"""Relative traffic by local hour; peaks at 8 and 18 h."""
WEEKEND = 0.88
"""Traffic on Saturdays and Sundays relative to other days."""

DUST_FLUX = 0.02
"""PM10 lifted from bare ground [ug s2 m-5]; 3% of the flux constant of Tegen and Fung (1994)."""
DUST_THRESHOLD = 6.5
"""Threshold wind speed of dust emission [m s-1] (Tegen and Fung 1994, J. Geophys. Res. 99, 22897)."""
FINE_DUST = 0.10
"""Share of lifted PM10 that is PM2.5."""


@dataclass(frozen=True)
class Emissions:
    """Emission model on a grid.

    Attributes:
        per_hour: (S, H, W) annual mean [ug m-2 h-1].
        bare: (H, W) share of bare ground.
        cold: (H, 1) 0-1, heating demand by latitude.
        longitude: (W,) [degrees east].
    """

    per_hour: Array
    bare: Array
    cold: Array
    longitude: NDArray[np.float64]

    def at(self, hours: NDArray[np.float64], weather: Weather) -> Array:
        """Return the emission (T, S, H, W) [ug m-2 h-1] at T times [hours since 1970-01-01T00 UTC]."""
        traffic = self._traffic(hours)[:, None]
        rhythm = 1 + TRAFFIC[:, None, None].astype(np.float32) * (traffic - 1)
        winter = np.maximum(season(hours), 0.0).astype(np.float32)[:, None, None, None]
        heating = 1 + HEATING[:, None, None].astype(np.float32) * winter * self.cold
        flux = self.per_hour * (rhythm * heating)
        dust = self._dust(weather)
        flux[:, Species.COARSE] += (1 - FINE_DUST) * dust
        flux[:, Species.PM25] += FINE_DUST * dust
        return flux

    def _traffic(self, hours: NDArray[np.float64]) -> Array:
        """Return the traffic (T, 1, W) relative to its mean, by local solar time and weekday."""
        local = (hours % 24)[:, None] + self.longitude / 15
        profile = np.append(RUSH_HOURS, RUSH_HOURS[0]) / RUSH_HOURS.mean()
        level = np.interp(local % 24, np.arange(25), profile)
        # Day 0, 1970-01-01, is a Thursday: weekday 3 if Monday is 0.
        weekday = (hours[:, None] + self.longitude / 15) // 24 + 3
        level *= np.where(weekday % 7 >= 5, WEEKEND, 1.0)
        traffic: Array = level[:, None, :].astype(np.float32)
        return traffic

    def _dust(self, weather: Weather) -> Array:
        """Return dust (T, H, W) [ug m-2 h-1]: C U^2 (U - U_t) on dry, bare ground (Tegen and Fung 1994)."""
        speed = np.hypot(weather.u, weather.v)
        lifted = np.float32(DUST_FLUX * 3600) * speed**2 * np.maximum(speed - DUST_THRESHOLD, 0)
        return lifted * self.bare * np.clip((75 - weather.rh) / 25, 0, 1)


def build_emissions(grid: Grid, topography: Topography) -> Emissions:
    """Build emissions: each inhabitant emits the Chinese mean per head."""
    people_per_m2 = population_density(grid, topography) * 1e-6
    per_hour = UG_PER_HEAD_HOUR[:, None, None] * people_per_m2
    per_hour[Species.OX] = PRIMARY_NO2 * per_hour[Species.NOX] * 48 / 46
    return Emissions(
        per_hour=per_hour.astype(np.float32),
        bare=desert_fraction(grid, topography),
        cold=(1 / (1 + np.exp((31.0 - grid.lat_centres) / 2.0)))[:, None].astype(np.float32),
        longitude=grid.lon_centres,
    )
