"""Large-scale and local winds as a linear map from time series to fields.

Each field is a sum of fixed patterns, each times a coefficient that depends on time alone:

    field(t, x, y) = sum_m coefficient_m(t) pattern_m(x, y)

The patterns (terrain, coastlines, waves in cosine and sine) are computed once; a day is then one matrix
product. The weather depends on absolute time alone, so it needs no state and no spin-up.

Rows (m): two per wave, then the constant, the season, and cosine and sine of the hour of the day.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from aqtopo.data.forcings import HOURS_PER_DAY
from aqtopo.data.grid import EARTH_RADIUS, Array, Grid
from aqtopo.data.topography import Topography

EARTH_ROTATION = 7.292e-5
"""[rad s-1]"""
TROPICAL_YEAR_H = 365.2422 * HOURS_PER_DAY
WAVES = 28
STEERING = 9.0
"""Westerly flow that advects the waves [m s-1]: surface lows follow the 700-500 hPa flow."""
WAVE_WIND = 5.2
"""Root mean square of each component of the synoptic wind in the winter storm track [m s-1]."""
STEEP = 0.006
"""Slope [m m-1] at which terrain deflects half of the flow's normal component."""


class Flow(IntEnum):
    """Channels of the circulation, in stacking order."""

    U = 0  # eastward wind [m s-1]
    V = 1  # northward wind [m s-1]
    STREAM = 2  # synoptic stream function over its standard deviation [1]; positive in anticyclones
    WARM = 3  # synoptic southerly without terrain, over WAVE_WIND [1]: warm and moist air


@dataclass(frozen=True)
class Waves:
    """Travelling Rossby waves, stream function = sum amplitude cos(k x + l y - omega t + phase).

    Attributes (each (K,)):
        k: eastward wavenumber [rad m-1].
        l: northward wavenumber [rad m-1].
        omega: frequency [rad h-1].
        phase: [rad].
        amplitude: of the stream function [m2 s-1].
        envelope: frequency of growth and decay [rad h-1].
        envelope_phase: [rad].
    """

    k: NDArray[np.float64]
    l: NDArray[np.float64]  # noqa: E741
    omega: NDArray[np.float64]
    phase: NDArray[np.float64]
    amplitude: NDArray[np.float64]
    envelope: NDArray[np.float64]
    envelope_phase: NDArray[np.float64]


def draw_waves(seed: int, latitude: float) -> Waves:
    """Draw random waves that obey the dispersion relation of barotropic Rossby waves.

    omega = k (U - beta / (k^2 + l^2)) (Holton and Hakim, An Introduction to Dynamic Meteorology, 5th ed.,
    section 5.7): 2500 km waves cross the domain in days, 7000 km waves are almost stationary.
    """
    rng = np.random.default_rng(seed)
    k = 2 * np.pi / rng.uniform(2.4e6, 7e6, WAVES)
    l = 2 * np.pi / rng.uniform(2.8e6, 9e6, WAVES) * rng.choice([-1.0, 1.0], WAVES)  # noqa: E741
    beta = 2 * EARTH_ROTATION * np.cos(np.radians(latitude)) / EARTH_RADIUS
    total = k**2 + l**2
    weight = rng.uniform(0.5, 1.5, WAVES)
    weight /= np.sqrt(np.mean(weight**2))
    return Waves(
        k=k,
        l=l,
        omega=k * (STEERING - beta / total) * 3600,
        phase=rng.uniform(0, 2 * np.pi, WAVES),
        # Equal mean kinetic energy per wave: amplitude^2 (k^2 + l^2) / 2 = 2 V^2 / K.
        amplitude=weight * WAVE_WIND * 2 / np.sqrt(total * WAVES),
        envelope=2 * np.pi / (24 * rng.uniform(9.0, 40.0, WAVES)),
        envelope_phase=rng.uniform(0, 2 * np.pi, WAVES),
    )


def season(hours: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1 in mid-January and -1 in mid-July; `hours` since 1970-01-01T00 UTC."""
    return np.cos(2 * np.pi * (hours - 15 * 24) / TROPICAL_YEAR_H)


@dataclass(frozen=True)
class Circulation:
    """Flow patterns on a grid, and the waves that drive them.

    Attributes:
        waves: see `Waves`.
        patterns: (4, M, H W) the channels of `Flow`.
        shape: (H, W).
    """

    waves: Waves
    patterns: Array
    shape: tuple[int, int]

    def at(self, hours: NDArray[np.float64]) -> Array:
        """Return (4, T, H, W), the channels of `Flow` at T times [hours since 1970-01-01T00 UTC]."""
        flat: Array = self._coefficients(hours).astype(np.float32) @ self.patterns
        return flat.reshape(len(Flow), len(hours), *self.shape)

    def _coefficients(self, hours: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (T, M)."""
        waves, time, winter = self.waves, hours[:, None], season(hours)[:, None]
        growth = (1 + 0.6 * np.cos(waves.envelope * time + waves.envelope_phase)) / np.sqrt(1.18)
        storminess = (0.78 + 0.22 * winter) * growth
        day = 2 * np.pi * (time % 24) / 24
        # Breezes are twice as strong in July as in January.
        sunshine = 1 - 0.33 * winter
        columns = (
            storminess * np.cos(waves.omega * time),
            storminess * np.sin(waves.omega * time),
            np.ones_like(time),
            winter,
            sunshine * np.cos(day),
            sunshine * np.sin(day),
        )
        return np.concatenate(columns, axis=1)


def build_circulation(
    grid: Grid, topography: Topography, seed: int, wind_strength: float = 1.0
) -> Circulation:
    """Build the patterns of waves, mean westerlies, monsoon and breezes; terrain modifies all but breezes.

    `wind_strength` multiplies the winds, but not the pressure and warm sectors of the waves.
    """
    waves = draw_waves(seed, float(grid.lat_centres.mean()))
    u, v, stream = _wave_patterns(grid, waves)
    warm = v / WAVE_WIND
    mean_u, mean_v = _mean_winds(grid)
    breeze_u, breeze_v = _breezes(grid, topography)
    blank = np.zeros((len(mean_u) + len(breeze_u), *grid.shape))
    u, v = _around_terrain(np.concatenate([u, mean_u]), np.concatenate([v, mean_v]), grid, topography)
    u, v = np.concatenate([u, breeze_u]), np.concatenate([v, breeze_v])
    stream, warm = np.concatenate([stream, blank]), np.concatenate([warm, blank])
    channels = {Flow.U: wind_strength * u, Flow.V: wind_strength * v, Flow.STREAM: stream, Flow.WARM: warm}
    patterns = np.stack([channels[flow].reshape(len(u), -1) for flow in Flow])
    return Circulation(waves, patterns.astype(np.float32), grid.shape)


Patterns = NDArray[np.float64]


def _wave_patterns(grid: Grid, waves: Waves) -> tuple[Patterns, Patterns, Patterns]:
    """Return (2K, H, W) u, v [m s-1] and the normalized stream function; cosines, then sines."""
    north = EARTH_RADIUS * np.radians(grid.lat2d - grid.lat_centres.mean())
    east_scale = EARTH_RADIUS * np.cos(np.radians(grid.lat_centres.mean()))
    east = east_scale * np.radians(grid.lon2d - grid.lon_centres.mean())
    angle = waves.k[:, None, None] * east + waves.l[:, None, None] * north + waves.phase[:, None, None]
    # Synoptic activity decreases towards the tropics.
    track = waves.amplitude[:, None, None] * (0.7 + 0.3 * np.tanh((grid.lat2d - 27.0) / 7.0))
    stream = np.concatenate([track * np.cos(angle), track * np.sin(angle)])
    d_north, d_east = np.gradient(stream, grid.dy, float(grid.dx.mean()), axis=(1, 2))
    spread = np.sqrt(np.sum(waves.amplitude**2) / 2)
    return -d_north, d_east, stream / spread


def _mean_winds(grid: Grid) -> tuple[Patterns, Patterns]:
    """Return (2, H, W) u, v [m s-1]: the annual mean, and half the difference of January and July.

    Westerlies north of 25 N, stronger in winter; trades south of it; the East Asian monsoon: north-westerly
    in winter, southerly in summer.
    """
    westerly = np.tanh((grid.lat2d - 24.0) / 6.0)
    monsoon = np.exp(-(((grid.lon2d - 117.0) / 14.0) ** 2))
    tropics = 1 / (1 + np.exp((grid.lat2d - 27.0) / 4.0))
    u = np.stack([1.6 * westerly - 0.3 * monsoon, 0.8 * westerly - 1.2 * tropics + 0.4 * monsoon])
    v = np.stack([-0.2 * monsoon, -2.2 * monsoon - 0.8 * tropics])
    return u, v


def _around_terrain(
    u: Patterns, v: Patterns, grid: Grid, topography: Topography
) -> tuple[Patterns, Patterns]:
    """Deflect the flow along steep slopes and slow it over rough terrain; both are linear in the wind."""
    slope_x, slope_y, slope = _gradient(topography.elevation.astype(np.float64), grid)
    n_x, n_y = slope_x / np.maximum(slope, 1e-9), slope_y / np.maximum(slope, 1e-9)
    turned = slope**2 / (slope**2 + STEEP**2)
    across = turned * (u * n_x + v * n_y)
    drag = (1.15 - 0.35 * topography.land) / (1 + topography.relief / 900.0)
    return (u - across * n_x) * drag, (v - across * n_y) * drag


def _breezes(grid: Grid, topography: Topography) -> tuple[Patterns, Patterns]:
    """Return (2, H, W), the cosine and sine coefficients of the breezes by UTC hour.

    Upslope and onshore in the afternoon, reversed at night: slope winds of 1.5 m s-1, sea breezes of 2 m s-1
    with their maximum at 15 h local solar time (Whiteman, Mountain Meteorology, 2000).
    """
    slope_x, slope_y, slope = _gradient(topography.elevation.astype(np.float64), grid)
    coast_x, coast_y, coast = _gradient(topography.land.astype(np.float64), grid)
    up = 1.5 * np.tanh(slope / STEEP) / np.maximum(slope, 1e-9)
    onshore = 2.0 * np.tanh(coast * 1.5e5) / np.maximum(coast, 1e-9)
    u, v = up * slope_x + onshore * coast_x, up * slope_y + onshore * coast_y
    # cos(UTC + longitude - peak) = cos(UTC) cos(longitude - peak) - sin(UTC) sin(longitude - peak)
    lag = np.radians(grid.lon2d) - 2 * np.pi * 14.5 / 24
    in_phase = np.stack([np.cos(lag), -np.sin(lag)])
    return u * in_phase, v * in_phase


def _gradient(field: Patterns, grid: Grid) -> tuple[Patterns, Patterns, Patterns]:
    """Return (H, W) eastward and northward derivative [field m-1] and their magnitude."""
    d_north = np.gradient(field, grid.dy, axis=0)
    d_east = np.gradient(field, axis=1) / grid.dx
    return d_east, d_north, np.hypot(d_east, d_north)
