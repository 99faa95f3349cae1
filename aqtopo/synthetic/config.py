"""Configuration of a simulation, and the named scenarios of `aqtopo synth --world`."""

from calendar import isleap
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType
from typing import TypedDict

from aqtopo.data.grid import Grid

FIRST_YEAR, LAST_YEAR = 1970, 2200


@dataclass(frozen=True)
class SimulationConfig:
    """Input of the simulator; equal configurations give the same bytes on the same machine.

    Attributes:
        years: calendar years (UTC), ascending. A year that follows its predecessor continues from its last
            hour; any other year starts with a spin-up.
        grid: (H, W).
        seed: seed of the synoptic waves.
        lat: southern and northern edge of the domain [degrees north].
        lon: western and eastern edge of the domain [degrees east].
        flat: set all elevations to 0 m; coastlines, cities and deserts stay.
        ridge_blocking: factor of the height that air has to climb between cells; 0 disables blocking.
        wind_transport: advect pollutants; if false, they only diffuse.
        wind_strength: factor of the wind speed; 0 means calm.
    """

    years: tuple[int, ...]
    grid: tuple[int, int] = (32, 64)
    seed: int = 0
    lat: tuple[float, float] = (17.0, 49.0)
    lon: tuple[float, float] = (72.0, 136.0)
    flat: bool = False
    ridge_blocking: float = 1.0
    wind_transport: bool = True
    wind_strength: float = 1.0

    def __post_init__(self) -> None:
        self.domain  # noqa: B018  (building the grid validates it)
        years = list(self.years)
        if not years or years != sorted(set(years)):
            raise ValueError(f"--years {years} is not valid. Give at least one year, each once, ascending.")
        if years[0] < FIRST_YEAR or years[-1] > LAST_YEAR:
            raise ValueError(f"--years {years} is out of range. Use {FIRST_YEAR} to {LAST_YEAR}.")
        for name in ("seed", "ridge_blocking", "wind_strength"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)} is negative. Use 0 or a positive number.")

    @property
    def days(self) -> int:
        """Number of days in all years."""
        return sum(366 if isleap(year) else 365 for year in self.years)

    @cached_property
    def domain(self) -> Grid:
        """Grid on the sphere."""
        return Grid(self.grid, self.lat, self.lon)


class ScenarioOptions(TypedDict, total=False):
    """Fields of `SimulationConfig` that a scenario may change."""

    flat: bool
    ridge_blocking: float
    wind_transport: bool
    wind_strength: float


class Scenario(StrEnum):
    """Named scenarios: the default, and those of ablations, for which the effect of terrain is known."""

    REAL = "real"
    RIDGES = "ridges"
    FLAT = "flat"
    INERT = "inert"


# Do not change: docs/ablation.md names the commit that fixed these values before the first training.
SCENARIO_OPTIONS: Mapping[Scenario, ScenarioOptions] = MappingProxyType(
    {
        Scenario.REAL: {},
        # Wind and terrain dominate: winds are 50% stronger and ridges twice as high.
        Scenario.RIDGES: {"ridge_blocking": 2.0, "wind_strength": 1.5},
        # Null case without elevation and wind.
        Scenario.FLAT: {"flat": True, "wind_strength": 0.0},
        # Null case with the elevation and wind of `ridges`, neither of which affects the pollutants.
        Scenario.INERT: {"ridge_blocking": 0.0, "wind_transport": False, "wind_strength": 1.5},
    }
)
"""Fields that each scenario changes."""
