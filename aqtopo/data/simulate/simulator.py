"""The simulator: weather drives pollutants over real terrain, hour by hour, in blocks for the store."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from aqtopo.data.simulate.chemistry import BACKGROUND, build_rates, photostationary, react
from aqtopo.data.simulate.emissions import Emissions, Species, build_emissions
from aqtopo.data.simulate.population import population_density
from aqtopo.data.simulate.terrain import Terrain, load_terrain
from aqtopo.data.simulate.transport import Transport, advance
from aqtopo.data.simulate.weather import Climate, Weather, build_climate
from aqtopo.data.simulate.world import Array, World
from aqtopo.variables import DYNAMIC_VARIABLES, STATIC_CHANNELS

HOURS_PER_DAY = 24
SPIN_UP_DAYS = 12
"""Days from clean air to the first hour; pollutants live for two to six days."""
BLOCK_BYTES = 256 * 2**20
"""Largest block handed to the store: a month on 32 x 64 cells, a week on 128 x 256."""


@dataclass(frozen=True)
class Simulator:
    """All that is fixed while a world runs: terrain, climate, emissions and the way through the faces."""

    world: World
    terrain: Terrain
    climate: Climate
    emissions: Emissions
    transport: Transport

    def day(self, first_hour: int, state: Array) -> tuple[Array, Array]:
        """Simulate 24 hours from `first_hour` [h since 1970-01-01T00 UTC].

        Args:
            first_hour: a midnight.
            state: (S, H, W) concentrations at that hour [ug m-3].

        Returns:
            fields (24, C, H, W) in the order of `DYNAMIC_VARIABLES`, and the state 24 hours later.
        """
        hours = first_hour + np.arange(HOURS_PER_DAY + 1, dtype=np.float64)
        weather = self.climate.at(hours)
        next_depth = weather.depth[1:]
        hours, weather = hours[:-1], weather.without_last_hour()
        stencil = self.transport.stencil(weather)
        emission = self.emissions.at(hours, weather)
        rates = build_rates(weather, next_depth, emission, self.terrain.land)

        states = np.empty((HOURS_PER_DAY, *state.shape), np.float32)
        halo = np.zeros((len(Species), *(n + 2 for n in self.world.grid)), np.float32)
        state = state.copy()
        for hour in range(HOURS_PER_DAY):
            states[hour] = state
            state -= BACKGROUND
            advance(state, stencil, hour, halo)
            state += BACKGROUND
            # Air that a ridge holds back may lose more ozone than the background has.
            np.maximum(state, 0, out=state)
            react(state, rates, hour)
        return _fields(weather, states), state


def build_simulator(world: World) -> Simulator:
    """Load the terrain and make everything that does not change with time.

    Raises:
        ValueError: the terrain map is not installed.
    """
    grid, terrain = world.domain, load_terrain(world.domain)
    if world.flat:
        terrain = terrain.flattened()
    return Simulator(
        world=world,
        terrain=terrain,
        climate=build_climate(grid, terrain, world.seed, world.wind_strength),
        emissions=build_emissions(grid, terrain),
        transport=Transport(world, terrain),
    )


def simulate(world: World) -> Iterator[xr.Dataset]:
    """Simulate the world's years in blocks of whole days that follow each other.

    Yields:
        Data sets as `aqtopo.data.store.write_store` takes them, none longer than a month.

    Raises:
        ValueError: the terrain map is not installed.
    """
    simulator = build_simulator(world)
    frame = _frame(simulator)
    state = None
    previous = None
    for year in world.years:
        if state is None or year - 1 != previous:
            state = _spin_up(simulator, year)
        for first, days in _blocks(world, year):
            fields = np.empty((days * HOURS_PER_DAY, len(DYNAMIC_VARIABLES), *world.grid), np.float32)
            for day in range(days):
                rows = slice(day * HOURS_PER_DAY, (day + 1) * HOURS_PER_DAY)
                fields[rows], state = simulator.day(first + rows.start, state)
            times = np.datetime64(first, "h") + np.arange(len(fields))
            yield frame.assign(fields=(("time", "channel", "lat", "lon"), fields)).assign_coords(
                time=times.astype("datetime64[ns]")
            )
        previous = year


def _hours_since_epoch(date: str) -> int:
    return int(np.datetime64(date, "h").astype(np.int64))


def _spin_up(simulator: Simulator, year: int) -> Array:
    """(S, H, W) the state on the first hour of a year that has no simulated predecessor."""
    shape = (len(Species), *simulator.world.grid)
    state = np.broadcast_to(BACKGROUND, shape).astype(np.float32)
    first = _hours_since_epoch(f"{year}-01-01")
    for day in range(-SPIN_UP_DAYS, 0):
        _, state = simulator.day(first + day * HOURS_PER_DAY, state)
    return state


def _blocks(world: World, year: int) -> Iterator[tuple[int, int]]:
    """First hour and number of days of each block of a year: months, or parts of them on large grids."""
    height, width = world.grid
    bytes_per_day = HOURS_PER_DAY * len(DYNAMIC_VARIABLES) * height * width * 4
    longest = max(1, BLOCK_BYTES // bytes_per_day)
    for month in range(12):
        start, end = (np.datetime64(f"{year}-01", "M") + month + step for step in (0, 1))
        days = int((end.astype("datetime64[D]") - start.astype("datetime64[D]")).astype(np.int64))
        first = _hours_since_epoch(str(start))
        for offset in range(0, days, longest):
            yield first + offset * HOURS_PER_DAY, min(longest, days - offset)


def _fields(weather: Weather, states: Array) -> Array:
    """(T, C, H, W) what the store holds, from the weather and the carried species (T, S, H, W)."""
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


def _frame(simulator: Simulator) -> xr.Dataset:
    """The parts that all blocks share: static fields, coordinates and attributes."""
    world, grid, terrain = simulator.world, simulator.world.domain, simulator.terrain
    static: dict[str, NDArray[np.floating]] = {
        "elevation": terrain.elevation,
        "population": population_density(grid, terrain),
        "lat2d": grid.lat2d,
        "lon2d": grid.lon2d,
        "mask": terrain.mask,
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
            "seed": world.seed,
            "flat_terrain": str(world.flat).lower(),
            "ridge_blocking": world.ridge_blocking,
            "wind_transport": str(world.wind_transport).lower(),
            "wind_strength": world.wind_strength,
        },
    )
