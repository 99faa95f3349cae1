"""`aqtopo synth`: simulate air quality over real terrain and write it as a data store."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aqtopo.cli.domain import CHINA_LAT, CHINA_LON, Latitudes, Longitudes
from aqtopo.synthetic.config import SCENARIO_OPTIONS, Scenario

if TYPE_CHECKING:
    import xarray as xr

    from aqtopo.synthetic.config import SimulationConfig


def synth(
    out: Annotated[Path, typer.Argument(help="The zarr store to write.", metavar="OUT")],
    years: Annotated[list[int], typer.Option(help="The years to simulate, ascending: 2016 2017 2018.")],
    grid: Annotated[str, typer.Option(help="Latitudes x longitudes.", metavar="HxW")] = "32x64",
    seed: Annotated[int, typer.Option(help="Draws the weather.")] = 0,
    train_years: Annotated[
        list[int] | None,
        typer.Option(help="The years of the statistics, one or several.", show_default="the first year"),
    ] = None,
    lat: Latitudes = CHINA_LAT,
    lon: Longitudes = CHINA_LON,
    scenario: Annotated[
        Scenario,
        typer.Option(
            "--world",
            help="real: as it is; ridges: strong winds, ridges that block; flat: neither heights nor wind; "
            "inert: both, and pollution that stays where it is.",
        ),
    ] = Scenario.REAL,
) -> None:
    """Simulate hourly weather and air quality over real terrain, and the statistics of the training years.

    The result has the units and ranges of a reanalysis and is none: its attributes say that it is simulated.
    The worlds other than `real` are for ablations: there it is known what a model should need.
    """
    from aqtopo.data.grid import parse_grid
    from aqtopo.data.statistics import write_statistics
    from aqtopo.data.write import write_store
    from aqtopo.synthetic.config import SimulationConfig
    from aqtopo.synthetic.simulator import simulate

    config = SimulationConfig(
        years=tuple(years), grid=parse_grid(grid), seed=seed, lat=lat, lon=lon, **SCENARIO_OPTIONS[scenario]
    )
    train_years = train_years or years[:1]
    missing = sorted(set(train_years) - set(years))
    if missing:
        raise ValueError(
            f"--train-years names {', '.join(map(str, missing))}, which is not simulated by "
            f"--years {' '.join(map(str, years))}: add it there or leave it out here"
        )
    write_store(with_progress(simulate(config), config), out)
    write_statistics(out, train_years)
    of_scenario = "" if scenario is Scenario.REAL else f" of the world {scenario}"
    typer.echo(f"{out}: {grid} cells{of_scenario}, {', '.join(map(str, years))}, simulated with seed {seed}")


def with_progress(blocks: "Iterator[xr.Dataset]", config: "SimulationConfig") -> "Iterator[xr.Dataset]":
    """Pass the blocks on and show how many simulated days are written."""
    from aqtopo.cli.progress import Progress

    progress, days, total = Progress(), 0, config.days
    progress("simulated days", days, total)
    for block in blocks:
        yield block
        days += block.sizes["time"] // 24
        progress("simulated days", days, total)
