"""Hourly surface weather: wind, temperature, humidity, pressure, sun and mixed-layer depth."""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from aqtopo.data.grid import Array, Grid
from aqtopo.data.topography import Topography
from aqtopo.synthetic.circulation import EARTH_ROTATION, Circulation, build_circulation, season
from aqtopo.synthetic.population import desert_fraction

LAPSE_RATE = 6.5e-3
"""ICAO standard atmosphere [K m-1]."""
GRAVITY, GAS_CONSTANT = 9.80665, 287.05
"""[m s-2], [J kg-1 K-1] of dry air."""
SEA_LEVEL_PRESSURE = 101_325.0
"""[Pa]"""
OBLIQUITY = np.radians(23.44)
WARM_SECTOR = 4.0
"""Warming per standard deviation of southerly wind [K]."""
STABILITY = 0.45
"""One standard deviation of anticyclonic stream function scales the mixed layer by exp(-STABILITY)."""

DEPTH_RANGE = (120.0, 3500.0)
"""Minimum and maximum mixed-layer depth [m]."""


@dataclass(frozen=True)
class Weather:
    """Weather of T consecutive hours, each field (T, H, W).

    Attributes:
        u: eastward wind, mean of the mixed layer [m s-1].
        v: northward wind [m s-1].
        temp: air temperature [K].
        rh: relative humidity [%].
        psfc: surface pressure [Pa].
        sun: sine of the solar elevation, 0 at night.
        depth: mixed-layer depth [m].
    """

    u: Array
    v: Array
    temp: Array
    rh: Array
    psfc: Array
    sun: Array
    depth: Array

    def without_last_hour(self) -> "Weather":
        """Return the weather without its last hour."""
        return Weather(**{field.name: getattr(self, field.name)[:-1] for field in fields(self)})


@dataclass(frozen=True)
class Climate:
    """Climate on a grid, from which the weather at any time is computed.

    Attributes:
        circulation: see `Circulation`.
        elevation: (H, W) [m].
        mean_temp: (H, W) annual mean at sea level [K].
        season_temp: (H, W) half the difference of January and July [K], negative.
        day_temp: (H, W) diurnal amplitude [K].
        moisture: (H, W) annual mean of the logit of relative humidity.
        season_moisture: (H, W) January anomaly [logit].
        day_moisture: (H, W) early-morning anomaly [logit].
        geostrophic: (H, W) pressure per standard deviation of stream function [Pa].
        mixing: (2, H, W) mixed-layer depth added by full sun [m]: mean and seasonal part.
        still: (H, W) mixed-layer depth without wind and sun [m].
        sun_base, sun_swing: (H, 1) sine and cosine of latitude.
        meridian: (1, W) longitude [rad].
    """

    circulation: Circulation
    elevation: Array
    mean_temp: Array
    season_temp: Array
    day_temp: Array
    moisture: Array
    season_moisture: Array
    day_moisture: Array
    geostrophic: Array
    mixing: Array
    still: Array
    sun_base: Array
    sun_swing: Array
    meridian: Array

    def at(self, hours: NDArray[np.float64]) -> Weather:
        """Return the weather at T times [hours since 1970-01-01T00 UTC], not necessarily consecutive."""
        u, v, stream, warm = self.circulation.at(hours)
        winter = season(hours).astype(np.float32)[:, None, None]
        warmth = self._day_cycle(hours, peak=15.0)
        sea_level = self.mean_temp + self.season_temp * winter + self.day_temp * warmth + WARM_SECTOR * warm
        temp = sea_level - np.float32(LAPSE_RATE) * self.elevation
        humid = self.moisture + self.season_moisture * winter - self.day_moisture * warmth
        rh = 100 / (1 + np.exp(-(humid + 0.9 * warm - 0.7 * stream)))
        return Weather(
            u=u,
            v=v,
            temp=temp,
            rh=rh,
            psfc=self._pressure(temp, stream, winter),
            sun=self._sun(hours, lag_h=0.0),
            depth=self._mixed_layer(hours, np.hypot(u, v), stream, winter),
        )

    def _pressure(self, temp: Array, stream: Array, winter: Array) -> Array:
        """Return the hydrostatic pressure p0 exp(-g z / (R T)) with geostrophic anomalies.

        T is that of the middle of the column below. The winter anticyclone adds 6 hPa in January.
        """
        sea_level = np.float32(SEA_LEVEL_PRESSURE) + self.geostrophic * stream + 600.0 * winter
        column = temp + np.float32(LAPSE_RATE / 2) * self.elevation
        return sea_level * np.exp(np.float32(-GRAVITY / GAS_CONSTANT) * self.elevation / column)

    def _day_cycle(self, hours: NDArray[np.float64], peak: float) -> Array:
        """Return the cosine (T, 1, W) of local solar time relative to `peak` [h]."""
        utc = (2 * np.pi * ((hours % 24) - peak) / 24)[:, None, None]
        return np.cos(utc.astype(np.float32) + self.meridian)

    def _sun(self, hours: NDArray[np.float64], lag_h: float) -> Array:
        """Return the sine of the solar elevation (T, H, W), `lag_h` ago, 0 at night.

        sin(lat) sin(decl) + cos(lat) cos(decl) cos(hour angle).
        """
        tilt = -OBLIQUITY * season(hours + 25 * 24)  # the solstice is 25 days before the coldest day
        declination = tilt.astype(np.float32)[:, None, None]
        noon = self._day_cycle(hours, peak=12.0 + lag_h)
        height = self.sun_base * np.sin(declination) + self.sun_swing * np.cos(declination) * noon
        lit: Array = np.maximum(height, 0.0)
        return lit

    def _mixed_layer(self, hours: NDArray[np.float64], speed: Array, stream: Array, winter: Array) -> Array:
        """Return the depth [m]: wind and lagged sun deepen the mixed layer, anticyclones limit it.

        Magnitudes follow the climatology of Guo et al. 2016 (Atmos. Chem. Phys. 16, 13309): 200-400 m at
        night, 1-2 km on summer afternoons over land, with the maximum about two hours after noon.
        """
        convection = self._sun(hours, lag_h=2.0) * (self.mixing[0] - self.mixing[1] * winter)
        depth = (self.still + 40.0 * speed + convection) * np.exp(np.float32(-STABILITY) * stream)
        bounded: Array = np.clip(depth, *DEPTH_RANGE)
        return bounded


def build_climate(grid: Grid, topography: Topography, seed: int, wind_strength: float = 1.0) -> Climate:
    """Build the climate from latitude, coast and elevation.

    Round values within a few kelvin of the annual means and amplitudes of Asian stations (reanalysis
    climatologies); none is fitted.
    """
    land, lat = topography.land, grid.lat2d
    circulation = build_circulation(grid, topography, seed, wind_strength)
    dry = desert_fraction(grid, topography)
    inland = np.tanh((grid.lon2d - 98.0) / 10.0)
    coriolis = 2 * EARTH_ROTATION * np.sin(np.radians(grid.lat_centres.mean()))
    spread = np.sqrt(np.sum(circulation.waves.amplitude**2) / 2)
    maps = {
        "elevation": topography.elevation,
        "mean_temp": 273.15 + 27.0 - 0.65 * (lat - 17.0),
        "season_temp": -(2.0 + 0.42 * np.maximum(lat - 17.0, 0.0)) * (0.5 + 0.5 * land),
        "day_temp": 0.5 + (3.0 + 3.0 * dry) * land,
        "moisture": 0.55 + 0.4 * inland + 0.35 * np.tanh((32.0 - lat) / 8.0) + 0.7 * (1 - land) - 1.2 * dry,
        "season_moisture": -0.55 * land * np.tanh(np.maximum(45.0 - lat, 0.0) / 10.0),
        "day_moisture": 0.1 + 0.45 * land,
        "geostrophic": np.full(grid.shape, 1.2 * coriolis * spread * 1.6),
        "mixing": np.stack([250.0 + (1000.0 + 600.0 * dry) * land, 50.0 + 350.0 * land]),
        "still": 400.0 - 200.0 * land,
        "sun_base": np.sin(np.radians(grid.lat_centres))[:, None],
        "sun_swing": np.cos(np.radians(grid.lat_centres))[:, None],
        "meridian": np.radians(grid.lon_centres)[None, :],
    }
    return Climate(circulation, **{name: values.astype(np.float32) for name, values in maps.items()})
