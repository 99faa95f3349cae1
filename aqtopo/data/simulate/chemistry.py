"""What happens to pollutants within a cell: emission, dilution, deposition and a few reactions.

The mixed layer is one box of depth h. Linear losses and sources are integrated implicitly over an hour, which
keeps every concentration positive; sulphate, nitrate and ozone formation follow as explicit transfers that
never exceed what is there.
"""

from dataclasses import dataclass

import numpy as np

from aqtopo.data.simulate.emissions import Species
from aqtopo.data.simulate.weather import Weather
from aqtopo.data.simulate.world import Array

O3_PER_NO2 = np.float32(48 / 46)
"""Ratio of molar masses."""


def _column(*values: float) -> Array:
    return np.array(values, np.float32)[:, None, None]


# One value a species: coarse, SO2, NOx, CO, Ox, PM2.5.
BACKGROUND = _column(8.0, 1.5, 2.0, 180.0, 84.0, 8.0)
"""Clean air around and above the domain [ug m-3]."""
DEPOSITION = _column(0.8, 0.5, 0.2, 0.0, 0.35, 0.12) * 36
"""Dry deposition velocity [m h-1] (from cm s-1; Wesely 1989 for gases, Zhang et al. 2001 for particles)."""
WASHOUT = _column(0.30, 0.10, 0.03, 0.0, 0.0, 0.22)
"""Share that full rain washes out in an hour."""
AT_SEA = np.float32(0.35)
"""Dry deposition on the sea relative to land."""
RESIDUAL = np.float32(0.2)
"""How clean the air is into which the mixed layer grows in the morning: 0 as below, 1 background."""
EXCHANGE = np.float32(1 / 120)
"""Exchange with the free troposphere by clouds and fronts [h-1]."""

SULPHATE_PER_SO2 = np.float32(132 / 64)
NITRATE_PER_NO2 = np.float32(80 / 46)
"""Molar masses of ammonium sulphate and ammonium nitrate over those of their precursors."""
OZONE_RATE = np.float32(13.0)
"""Largest net production of Ox [ug m-3 h-1]."""
NOX_LIMITED, NOX_SATURATED = np.float32(6.0), np.float32(60.0)
"""NOx below which production falls with NOx, and above which radicals are lost to it [ug m-3]."""


@dataclass(frozen=True)
class Rates:
    """What T hours of weather do to the concentrations.

    Attributes:
        keep: (T, S, H, W) share that remains after linear losses.
        gain: (T, S, H, W) what emission and air from aloft add [ug m-3].
        sulphate: (T, H, W) share of SO2 that is oxidised in an hour.
        nitric: (T, H, W) share of NO2 that is oxidised in an hour.
        particle: (T, H, W) share of the nitric acid that condenses.
        ozone: (T, H, W) production of Ox where NOx is neither scarce nor abundant [ug m-3 h-1].
    """

    keep: Array
    gain: Array
    sulphate: Array
    nitric: Array
    particle: Array
    ozone: Array


def build_rates(weather: Weather, next_depth: Array, emission: Array, land: Array) -> Rates:
    """Turn T hours of weather and emission into rates.

    Args:
        weather: of T hours.
        next_depth: (T, H, W) depth of the mixed layer one hour later [m].
        emission: (T, S, H, W) [ug m-2 h-1].
        land: (H, W) land fraction.
    """
    depth = weather.depth[:, None]
    growth = np.maximum(next_depth - weather.depth, 0) / next_depth
    renewed = (RESIDUAL * growth + EXCHANGE)[:, None]
    velocity = DEPOSITION * (AT_SEA + (1 - AT_SEA) * land)
    # Plants close their stomata at night, and the air at the ground is still.
    velocity = velocity * (0.4 + 0.6 * weather.sun[:, None])
    loss = velocity / depth
    loss += WASHOUT * rain_intensity(weather.rh)[:, None]
    loss += renewed
    keep = 1 / (1 + loss)
    gain = (emission / depth + renewed * BACKGROUND) * keep
    wet = 1 / (1 + np.exp((78 - weather.rh) / 6))
    cold = 1 / (1 + np.exp((weather.temp - 285) / 5))
    summer_sun = weather.sun * np.exp((np.clip(weather.temp, 260, 308) - 298) / 14)
    return Rates(
        keep=keep,
        gain=gain,
        # OH in sunshine, in-cloud and heterogeneous oxidation in moist air (Seinfeld and Pandis 2016).
        sulphate=0.004 + 0.012 * summer_sun + 0.035 * wet,
        nitric=0.02 + 0.08 * summer_sun,
        # Ammonium nitrate needs cold and moist air (Stelson and Seinfeld 1982).
        particle=0.12 + 0.5 * cold * (0.3 + 0.7 * wet),
        ozone=OZONE_RATE * summer_sun,
    )


def rain_intensity(rh: Array) -> Array:
    """0-1: rain sets in at 78% relative humidity and is full at 95%."""
    intensity: Array = np.clip((rh - 78) / 17, 0, 1) ** 2
    return intensity


def react(state: Array, rates: Rates, hour: int) -> None:
    """Advance the concentrations (S, H, W) [ug m-3] by one hour within their cells, in place."""
    state *= rates.keep[hour]
    state += rates.gain[hour]
    so2, nox, ox, fine = (state[s] for s in (Species.SO2, Species.NOX, Species.OX, Species.PM25))
    oxidised = rates.sulphate[hour] * so2
    so2 -= oxidised
    fine += SULPHATE_PER_SO2 * oxidised
    # Where ozone is used up, NOx is NO, which does not turn into nitric acid.
    nitric = rates.nitric[hour] * np.minimum(nox, ox / O3_PER_NO2)
    radicals = nox / ((nox + NOX_LIMITED) * (1 + nox / NOX_SATURATED))
    ox += rates.ozone[hour] * radicals - O3_PER_NO2 * nitric
    nox -= nitric
    fine += NITRATE_PER_NO2 * rates.particle[hour] * nitric


def photostationary(nox: Array, ox: Array, temp: Array, sun: Array) -> tuple[Array, Array]:
    """NO2 and O3 in balance with NO [ug m-3].

    Leighton's relation [NO] [O3] / [NO2] = j / k with the sums NOx = NO + NO2 and Ox = O3 + NO2 is a
    quadratic in NO2. At night j = 0: NO takes up all ozone, or ozone all NO. j = 0.0167 exp(-0.575 / sin e)
    s-1 at the sun's elevation e (Dickerson et al. 1982), k = 3.0e-12 exp(-1500 / T) cm3 s-1 (JPL 2019).
    """
    photolysis = 0.0167 * np.exp(-0.575 / np.maximum(sun, 0.02))
    per_molecule = 46.0 / 6.022e23 * 1e12  # [ug m-3] of NO2 for one molecule in a cm3
    ratio = photolysis * np.float32(per_molecule / 3.0e-12) * np.exp(1500 / temp)
    ox_as_no2 = ox / O3_PER_NO2
    half = (nox + ox_as_no2 + ratio) / 2
    root = np.sqrt(np.maximum(half**2 - nox * ox_as_no2, 0))
    no2 = nox * ox_as_no2 / np.maximum(half + root, 1e-6)
    return no2, np.maximum(ox - O3_PER_NO2 * no2, 0)
