"""What a perfect model would lose by knowing nothing of wind or of ridges, in each world of the ablation.

    python scripts/worlds_worth.py

No network takes part. The simulator itself forecasts, from the true air and with the true weather to come,
once with the wind's transport switched off and once with the ridges' blocking: what it then errs by is what
knowledge of either is worth. In per cent of persistence's RMSE, over land, for every tenth day of a year.
"""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from aqtopo.data.simulate.chemistry import BACKGROUND
from aqtopo.data.simulate.settings import SWITCHES, Setting, Switches
from aqtopo.data.simulate.simulator import HOURS_PER_DAY, SPIN_UP_DAYS, Simulator, build_simulator
from aqtopo.data.simulate.world import World
from aqtopo.variables import DYNAMIC_VARIABLES, HORIZONS_H, TARGET_VARIABLES

GRID, LAT, LON = (16, 32), (22.0, 38.0), (92.0, 124.0)
"""The ablation's domain: the east of Tibet, the Sichuan basin, the plains and the sea."""

YEAR, EVERY_DAYS, LAST_DAY = 2018, 10, 350
BLIND: Mapping[str, Switches] = {
    "the wind": {"wind_transport": False},
    "ridges": {"ridge_blocking": 0.0},
}
TARGETS = [DYNAMIC_VARIABLES.index(name) for name in TARGET_VARIABLES]
Fields = NDArray[np.floating]


def simulator(switches: Switches) -> Simulator:
    """One world."""
    return build_simulator(World(years=(YEAR,), grid=GRID, lat=LAT, lon=LON, **switches))


def days(of: Simulator, first_hour: int, state: Fields) -> Iterator[tuple[Fields, Fields]]:
    """(S, H, W) the state at the start of each day from `first_hour`, and (24, C, H, W) its targets."""
    while True:
        fields, following = of.day(first_hour, state)
        yield state, fields[:, TARGETS]
        first_hour, state = first_hour + HOURS_PER_DAY, following


def at_horizons(of: Simulator, first_hour: int, state: Fields) -> Fields:
    """(K, C, H, W) what the air will be."""
    ahead = days(of, first_hour, state)
    hours = np.concatenate([next(ahead)[1] for _ in range(HORIZONS_H[-1] // HOURS_PER_DAY + 1)])
    return hours[list(HORIZONS_H)]


def worth(setting: Setting) -> dict[str, Fields]:
    """(K, C) per cent of persistence's RMSE by which each blind forecast errs."""
    truth = simulator(SWITCHES[setting])
    blind = {name: simulator({**SWITCHES[setting], **changes}) for name, changes in BLIND.items()}
    land = truth.terrain.mask > 0
    squared = {name: np.zeros((len(HORIZONS_H), len(TARGETS))) for name in ("persistence", *blind)}
    first = int(np.datetime64(f"{YEAR}-01-01", "h").astype(np.int64)) - SPIN_UP_DAYS * HOURS_PER_DAY
    start = np.broadcast_to(BACKGROUND, (len(BACKGROUND), *GRID)).astype(np.float32)
    for day, (state, now) in zip(range(-SPIN_UP_DAYS, LAST_DAY), days(truth, first, start), strict=False):
        if day < 0 or day % EVERY_DAYS:
            continue
        hour = first + (day + SPIN_UP_DAYS) * HOURS_PER_DAY
        ahead = at_horizons(truth, hour, state)
        guesses = {"persistence": now[0], **{name: at_horizons(b, hour, state) for name, b in blind.items()}}
        for name, guess in guesses.items():
            squared[name] += np.square(guess - ahead)[..., land].mean(-1)
    return {name: 100 * np.sqrt(squared[name] / squared["persistence"]) for name in blind}


def main() -> None:
    """Print the table, a row a world and kind of blindness."""
    table = Table(title="RMSE of a perfect forecast that ignores wind or ridges, in % of persistence's")
    for column in ("world", "ignores", *(f"{hours} h" for hours in HORIZONS_H)):
        table.add_column(column)
    for setting in (Setting.RIDGES, Setting.FLAT, Setting.INERT):
        for name, share in worth(setting).items():
            table.add_row(setting, name, *(f"{value:.1f}" for value in share.mean(axis=1)))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
