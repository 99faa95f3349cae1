"""Simulator: hourly weather and pollutants over real terrain, in chunks of days for the store."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from aqtopo.data.forcings import HOURS_PER_DAY
from aqtopo.data.grid import Array
from aqtopo.data.topography import Topography, load_topography
from aqtopo.synthetic.chemistry import BACKGROUND, build_rates, photostationary, react
from aqtopo.synthetic.config import SimulationConfig
from aqtopo.synthetic.emissions import Emissions, Species, build_emissions
from aqtopo.synthetic.population import population_density
from aqtopo.synthetic.transport import Transport, transport_hour
from aqtopo.synthetic.weather import Climate, Weather, build_climate
from aqtopo.variables import DYNAMIC_VARIABLES, STATIC_CHANNELS

SPIN_UP_DAYS = 12
"""Days from background air to the first hour; pollutants live for two to six days."""
CHUNK_BYTES = 256 * 2**20
"""Maximum size of a chunk of days: a month on 32 x 64 cells, a week on 128 x 256."""


@dataclass(frozen=True)
class Simulator:
    """Time-independent parts of a simulation: topography, climate, emissions and transport."""

    config: SimulationConfig
    topography: Topography
    climate: Climate
    emissions: Emissions
    transport: Transport

    def day(self, first_hour: int, state: Array) -> tuple[Array, Array]:
        """Simulate 24 hours from midnight of `first_hour` [h since 1970-01-01T00 UTC].

        Args:
            first_hour: midnight.
            state: (S, H, W) concentrations at that hour [ug m-3].

        Returns:
            Fields (24, C, H, W) in the order of `DYNAMIC_VARIABLES`, and the state 24 hours later.
        """
        hours = first_hour + np.arange(HOURS_PER_DAY + 1, dtype=np.float64)
        weather = self.climate.at(hours)
        next_depth = weather.depth[1:]
        hours, weather = hours[:-1], weather.without_last_hour()
        stencil = self.transport.stencil(weather)
        emission = self.emissions.at(hours, weather)
        rates = build_rates(weather, next_depth, emission, self.topography.land)

        states = np.empty((HOURS_PER_DAY, *state.shape), np.float32)
        halo = np.zeros((len(Species), *(n + 2 for n in self.config.grid)), np.float32)
        state = state.copy()
        for hour in range(HOURS_PER_DAY):
            states[hour] = state
            state -= BACKGROUND
            transport_hour(state, stencil, hour, halo)
            state += BACKGROUND
            # Venting of blocked air may remove more ozone than the background holds.
            np.maximum(state, 0, out=state)
            react(state, rates, hour)
        return _fields(weather, states), state


def build_simulator(config: SimulationConfig) -> Simulator:
    """Build the time-independent parts; raise ValueError if the altitude map is not installed."""
    grid, topography = config.domain, load_topography(config.domain)
    if config.flat:
        topography = topography.flattened()
    return Simulator(
        config=config,
        topography=topography,
        climate=build_climate(grid, topography, config.seed, config.wind_strength),
        emissions=build_emissions(grid, topography),
        transport=Transport(config, topography),
    )


def simulate(config: SimulationConfig) -> Iterator[xr.Dataset]:
    """Simulate all years in chunks of whole days, each at most a month long, for `write_store`.

    Raises:
        ValueError: the altitude map is not installed.
    """
    simulator = build_simulator(config)
    template = _template(simulator)
    state = None
    previous = None
    for year in config.years:
        if state is None or year - 1 != previous:
            state = _spin_up(simulator, year)
        for first, days in _chunks(config, year):
            fields = np.empty((days * HOURS_PER_DAY, len(DYNAMIC_VARIABLES), *config.grid), np.float32)
            for day in range(days):
                rows = slice(day * HOURS_PER_DAY, (day + 1) * HOURS_PER_DAY)
                fields[rows], state = simulator.day(first + rows.start, state)
            times = np.datetime64(first, "h") + np.arange(len(fields))
            yield template.assign(fields=(("time", "channel", "lat", "lon"), fields)).assign_coords(
                time=times.astype("datetime64[ns]")
            )
        previous = year


def _spin_up(simulator: Simulator, year: int) -> Array:
    """Return the state (S, H, W) at the first hour of a year that has no simulated predecessor."""
    shape = (len(Species), *simulator.config.grid)
    state = np.broadcast_to(BACKGROUND, shape).astype(np.float32)
    first = int(np.datetime64(f"{year}-01-01", "h").astype(np.int64))
    for day in range(-SPIN_UP_DAYS, 0):
        _, state = simulator.day(first + day * HOURS_PER_DAY, state)
    return state


def _chunks(config: SimulationConfig, year: int) -> Iterator[tuple[int, int]]:
    """Yield first hour and number of days of each chunk: a month, or part of it on large grids."""
    height, width = config.grid
    bytes_per_day = HOURS_PER_DAY * len(DYNAMIC_VARIABLES) * height * width * 4
    longest = max(1, CHUNK_BYTES // bytes_per_day)
    months = np.arange(f"{year}-01", f"{year + 1}-02", dtype="datetime64[M]").astype("datetime64[h]")
    for first, end in pairwise(months.astype(np.int64).tolist()):
        days = (end - first) // HOURS_PER_DAY
        for offset in range(0, days, longest):
            yield first + offset * HOURS_PER_DAY, min(longest, days - offset)


def _fields(weather: Weather, states: Array) -> Array:
    """Return the store's fields (T, C, H, W) from weather and transported species (T, S, H, W)."""
    no2, o3 = photostationary(states[:, Species.NOX], states[:, Species.OX], weather.temp, weather.sun)
    by_name = {
        "u": weather.u,
        "v": weather.v,
        "temp": weather.temp,
        "rh": weather.rh,
        "psfc": weather.psfc,
        "pm10": states[:, Species.COARSE] + states[:, Species.PM25],
        "so2": states[:, Species.SO2],
        "no2": no2,
        "co": states[:, Species.CO],
        "o3": o3,
        "pm25": states[:, Species.PM25],
    }
    return np.stack([by_name[name] for name in DYNAMIC_VARIABLES], axis=1)


def _template(simulator: Simulator) -> xr.Dataset:
    """Return the static fields, coordinates and attributes of all chunks."""
    config, grid, topography = simulator.config, simulator.config.domain, simulator.topography
    static: dict[str, NDArray[np.floating]] = {
        "elevation": topography.elevation,
        "population": population_density(grid, topography),
        "lat2d": grid.lat2d,
        "lon2d": grid.lon2d,
        "mask": topography.mask,
    }
    stacked = np.stack([static[name] for name in STATIC_CHANNELS]).astype(np.float32)
    return xr.Dataset(
        {"static": (("static_channel", "lat", "lon"), stacked)},
        coords={
            "lat": grid.lat_centres,
            "lon": grid.lon_centres,
            "channel": list(DYNAMIC_VARIABLES),
            "static_channel": list(STATIC_CHANNELS),
        },
        attrs={
            "title": "Simulated hourly air quality over real terrain",
            "source": f"aqtopo simulator {version('aqtopo')}, not observations",
            "simulated": "yes",
            "simulator_version": version("aqtopo"),
            "seed": config.seed,
            "flat_terrain": str(config.flat).lower(),
            "ridge_blocking": config.ridge_blocking,
            "wind_transport": str(config.wind_transport).lower(),
            "wind_strength": config.wind_strength,
        },
    )
