"""Emission, dilution, deposition and chemical reactions within a cell.

The mixed layer is one box of depth h. Linear losses and sources are integrated implicitly over an hour, which
keeps every concentration positive. Sulphate, nitrate and ozone formation are explicit transfers that never
exceed the available amount.
"""

from dataclasses import dataclass

import numpy as np

from aqtopo.data.grid import Array
from aqtopo.synthetic.emissions import Species
from aqtopo.synthetic.weather import Weather

O3_PER_NO2 = np.float32(48 / 46)
"""Ratio of molar masses."""


def _column(*values: float) -> Array:
    return np.array(values, np.float32)[:, None, None]


# One value per species: coarse, SO2, NOx, CO, Ox, PM2.5.
BACKGROUND = _column(8.0, 1.5, 2.0, 180.0, 84.0, 8.0)
"""Clean air around and above the domain [ug m-3]."""
DEPOSITION = _column(0.8, 0.5, 0.2, 0.0, 0.35, 0.12) * 36
"""Dry deposition velocity [m h-1] (from cm s-1; Wesely 1989 for gases, Zhang et al. 2001 for particles)."""
WASHOUT = _column(0.30, 0.10, 0.03, 0.0, 0.0, 0.22)
"""Share that full rain removes in an hour."""
AT_SEA = np.float32(0.35)
"""Dry deposition over sea relative to land."""
RESIDUAL = np.float32(0.2)
"""Share of background air in the air that a growing mixed layer entrains, 0-1."""
EXCHANGE = np.float32(1 / 120)
"""Exchange with the free troposphere through clouds and fronts [h-1]."""

SULPHATE_PER_SO2 = np.float32(132 / 64)
NITRATE_PER_NO2 = np.float32(80 / 46)
"""Molar mass of ammonium sulphate and nitrate relative to SO2 and NO2."""
OZONE_RATE = np.float32(13.0)
"""Maximum net production of Ox [ug m-3 h-1]."""
NOX_LIMITED, NOX_SATURATED = np.float32(6.0), np.float32(60.0)
"""Below the first, production is proportional to NOx; above the second, NOx removes radicals [ug m-3]."""


@dataclass(frozen=True)
class Rates:
    """Rates of change over T hours.

    Attributes:
        keep: (T, S, H, W) share that remains after linear losses.
        gain: (T, S, H, W) addition by emission and entrainment [ug m-3].
        sulphate: (T, H, W) share of SO2 that is oxidised in an hour.
        nitric: (T, H, W) share of NO2 that is oxidised in an hour.
        particle: (T, H, W) share of nitric acid that condenses.
        ozone: (T, H, W) Ox production at optimal NOx [ug m-3 h-1].
    """

    keep: Array
    gain: Array
    sulphate: Array
    nitric: Array
    particle: Array
    ozone: Array


def build_rates(weather: Weather, next_depth: Array, emission: Array, land: Array) -> Rates:
    """Compute the rates of T hours.

    `next_depth` (T, H, W) is the depth of the mixed layer one hour later [m], `emission` (T, S, H, W) is in
    ug m-2 h-1, and `land` (H, W) is the land fraction.
    """
    depth = weather.depth[:, None]
    growth = np.maximum(next_depth - weather.depth, 0) / next_depth
    renewed = (RESIDUAL * growth + EXCHANGE)[:, None]
    velocity = DEPOSITION * (AT_SEA + (1 - AT_SEA) * land)
    # At night, stomata are closed and turbulence is weak.
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
    """Return the rain intensity, 0 below 78% relative humidity to 1 from 95%."""
    return np.clip((rh - 78) / 17, 0, 1) ** 2


def react(state: Array, rates: Rates, hour: int) -> None:
    """Advance the concentrations (S, H, W) [ug m-3] by one hour of local processes, in place."""
    state *= rates.keep[hour]
    state += rates.gain[hour]
    so2, nox, ox, fine = (state[s] for s in (Species.SO2, Species.NOX, Species.OX, Species.PM25))
    oxidised = rates.sulphate[hour] * so2
    so2 -= oxidised
    fine += SULPHATE_PER_SO2 * oxidised
    # Without ozone, NOx is NO, which forms no nitric acid.
    nitric = rates.nitric[hour] * np.minimum(nox, ox / O3_PER_NO2)
    radicals = nox / ((nox + NOX_LIMITED) * (1 + nox / NOX_SATURATED))
    ox += rates.ozone[hour] * radicals - O3_PER_NO2 * nitric
    nox -= nitric
    fine += NITRATE_PER_NO2 * rates.particle[hour] * nitric


def photostationary(nox: Array, ox: Array, temp: Array, sun: Array) -> tuple[Array, Array]:
    """Return NO2 and O3 in photostationary equilibrium with NO [ug m-3].

    Leighton's relation [NO] [O3] / [NO2] = j / k with NOx = NO + NO2 and Ox = O3 + NO2 is a quadratic in NO2.
    At night j = 0, and titration consumes all ozone or all NO. j = 0.0167 exp(-0.575 / sin e) s-1 at solar
    elevation e (Dickerson et al. 1982), k = 3.0e-12 exp(-1500 / T) cm3 s-1 (JPL 2019).
    """
    photolysis = 0.0167 * np.exp(-0.575 / np.maximum(sun, 0.02))
    per_molecule = 46.0 / 6.022e23 * 1e12  # [ug m-3 NO2] per molecule cm-3
    ratio = photolysis * np.float32(per_molecule / 3.0e-12) * np.exp(1500 / temp)
    ox_as_no2 = ox / O3_PER_NO2
    half = (nox + ox_as_no2 + ratio) / 2
    root = np.sqrt(np.maximum(half**2 - nox * ox_as_no2, 0))
    no2 = nox * ox_as_no2 / np.maximum(half + root, 1e-6)
    return no2, np.maximum(ox - O3_PER_NO2 * no2, 0)
