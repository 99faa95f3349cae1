"""Bounds on the value of wind and ridges, from a perfect forecast that ignores one of them, by scenario.

    python scripts/oracle_bounds.py

The simulator forecasts from the true state with the true weather, once without advection and once without
ridge blocking. Output: RMSE in per cent of persistence's, over land, for every tenth day of a year.
"""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from aqtopo.data.forcings import HOURS_PER_DAY
from aqtopo.synthetic.chemistry import BACKGROUND
from aqtopo.synthetic.config import SCENARIO_OPTIONS, Scenario, ScenarioOptions, SimulationConfig
from aqtopo.synthetic.simulator import SPIN_UP_DAYS, Simulator, build_simulator
from aqtopo.variables import DYNAMIC_VARIABLES, HORIZONS_H, TARGET_VARIABLES

GRID, LAT, LON = (16, 32), (22.0, 38.0), (92.0, 124.0)
"""Domain of the ablation: eastern Tibet, the Sichuan basin, the plains and the sea."""

YEAR, EVERY_DAYS, LAST_DAY = 2018, 10, 350
WITHOUT: Mapping[str, ScenarioOptions] = {
    "wind": {"wind_transport": False},
    "ridges": {"ridge_blocking": 0.0},
}
TARGETS = [DYNAMIC_VARIABLES.index(name) for name in TARGET_VARIABLES]
Fields = NDArray[np.floating]


def simulator(options: ScenarioOptions) -> Simulator:
    """Build a simulator on the domain of the ablation."""
    return build_simulator(SimulationConfig(years=(YEAR,), grid=GRID, lat=LAT, lon=LON, **options))


def days(source: Simulator, first_hour: int, state: Fields) -> Iterator[tuple[Fields, Fields]]:
    """Yield the state (S, H, W) at the start of each day from `first_hour`, and its targets (24, C, H, W)."""
    while True:
        fields, following = source.day(first_hour, state)
        yield state, fields[:, TARGETS]
        first_hour, state = first_hour + HOURS_PER_DAY, following


def at_horizons(source: Simulator, first_hour: int, state: Fields) -> Fields:
    """Return the targets (K, C, H, W) at the horizons."""
    ahead = days(source, first_hour, state)
    hours = np.concatenate([next(ahead)[1] for _ in range(HORIZONS_H[-1] // HOURS_PER_DAY + 1)])
    return hours[list(HORIZONS_H)]


def relative_rmse(scenario: Scenario) -> dict[str, Fields]:
    """Return the RMSE (K, C) of each restricted forecast in per cent of persistence's."""
    truth = simulator(SCENARIO_OPTIONS[scenario])
    restricted = {
        name: simulator({**SCENARIO_OPTIONS[scenario], **changes}) for name, changes in WITHOUT.items()
    }
    land = truth.topography.mask > 0
    squared = {name: np.zeros((len(HORIZONS_H), len(TARGETS))) for name in ("persistence", *restricted)}
    first = int(np.datetime64(f"{YEAR}-01-01", "h").astype(np.int64)) - SPIN_UP_DAYS * HOURS_PER_DAY
    start = np.broadcast_to(BACKGROUND, (len(BACKGROUND), *GRID)).astype(np.float32)
    for day, (state, now) in zip(range(-SPIN_UP_DAYS, LAST_DAY), days(truth, first, start), strict=False):
        if day < 0 or day % EVERY_DAYS:
            continue
        hour = first + (day + SPIN_UP_DAYS) * HOURS_PER_DAY
        ahead = at_horizons(truth, hour, state)
        forecasts = {
            "persistence": now[0],
            **{name: at_horizons(b, hour, state) for name, b in restricted.items()},
        }
        for name, forecast in forecasts.items():
            squared[name] += np.square(forecast - ahead)[..., land].mean(-1)
    return {name: 100 * np.sqrt(squared[name] / squared["persistence"]) for name in restricted}


def main() -> None:
    """Print a row for each scenario and ignored process."""
    table = Table(title="RMSE of a perfect forecast that ignores wind or ridges, in % of persistence's")
    for column in ("scenario", "ignores", *(f"{hours} h" for hours in HORIZONS_H)):
        table.add_column(column)
    for scenario in (Scenario.RIDGES, Scenario.FLAT, Scenario.INERT):
        for name, share in relative_rmse(scenario).items():
            table.add_row(scenario, name, *(f"{value:.1f}" for value in share.mean(axis=1)))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
