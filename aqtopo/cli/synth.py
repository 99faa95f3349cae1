"""`aqtopo synth`: write a store of simulated air quality over real terrain, or weather forecasts of one."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aqtopo.cli.options import CHINA_LAT, CHINA_LON, Latitudes, Longitudes
from aqtopo.synthetic.config import SCENARIO_OPTIONS, Scenario
from aqtopo.variables import HORIZONS_H

if TYPE_CHECKING:
    import xarray as xr

    from aqtopo.synthetic.config import SimulationConfig


def synth(
    context: typer.Context,
    out: Annotated[
        Path, typer.Argument(help="New zarr store; with --weather-error: OUT.zarr or OUT.nc.", metavar="OUT")
    ],
    years: Annotated[list[int], typer.Option(help="Years to simulate, ascending: 2016 2017 2018.")],
    grid: Annotated[str, typer.Option(help="Latitudes x longitudes.", metavar="HxW")] = "32x64",
    seed: Annotated[int, typer.Option(help="Seed of the weather.")] = 0,
    train_years: Annotated[
        list[int] | None,
        typer.Option(help="Years of the statistics, one or several.", show_default="the first year"),
    ] = None,
    lat: Latitudes = CHINA_LAT,
    lon: Longitudes = CHINA_LON,
    scenario: Annotated[
        Scenario,
        typer.Option(
            "--world",
            help="real: real terrain; ridges: strong winds and blocking ridges; flat: no elevation, no wind; "
            "inert: elevation and wind, but no transport of pollution.",
        ),
    ] = Scenario.REAL,
    weather_error: Annotated[
        Path | None,
        typer.Option(
            metavar="STORE",
            help="Instead of a store, write forecasts of the weather of STORE, whose error grows with lead "
            "time, for `aqtopo evaluate --weather`. --years and --every give the initial times.",
        ),
    ] = None,
    every: Annotated[
        int, typer.Option(min=1, metavar="HOURS", help="Interval of initial times within a year.")
    ] = 24,
    lead: Annotated[
        list[int] | None,
        typer.Option(min=1, metavar="HOURS", help="Lead time, repeatable.", show_default="12, 24, 48, 96"),
    ] = None,
) -> None:
    """Simulate hourly weather and air quality over real terrain; add the statistics of the training years.

    The data have the units and ranges of a reanalysis; attributes of the store mark them as simulated.
    The worlds other than `real` are for ablations with a known result.
    """
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if weather_error is not None:
        _refuse(given, ("grid", "train_years", "lat", "lon", "scenario"), "has no use with --weather-error")
        _write_weather(out, weather_error, years, every, sorted(set(lead or HORIZONS_H)), seed)
        return
    _refuse(given, ("every", "lead"), "needs --weather-error STORE")
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
            f"--train-years has {', '.join(map(str, missing))}, but --years only has "
            f"{' '.join(map(str, years))}. Add the years to --years, or remove them from --train-years."
        )
    write_store(with_progress(simulate(config), config), out)
    write_statistics(out, train_years)
    of_scenario = "" if scenario is Scenario.REAL else f" of the world {scenario}"
    typer.echo(f"{out}: {grid} cells{of_scenario}, {', '.join(map(str, years))}, simulated with seed {seed}")


def _refuse(given: Sequence[str], names: Sequence[str], why: str) -> None:
    """Refuse options that have no use, by the names of their parameters."""
    for name in names:
        if name in given:
            option = "world" if name == "scenario" else name.replace("_", "-")
            raise ValueError(f"--{option} {why}. Leave it out.")


def _write_weather(
    out: Path, path: Path, years: Sequence[int], every: int, leads: Sequence[int], seed: int
) -> None:
    from aqtopo.cli.progress import ProgressBar
    from aqtopo.data.store import open_store
    from aqtopo.inference.forecast_file import check_output, write_forecast
    from aqtopo.synthetic.weather_error import weather_forecasts

    check_output(out)
    dataset = weather_forecasts(open_store(path), years, every, leads, seed, ProgressBar())
    write_forecast(dataset, out)
    typer.echo(
        f"{out}: weather forecasts of {path} from {dataset.sizes['init_time']} initial times, at "
        f"{', '.join(map(str, leads))} h, simulated with seed {seed}"
    )


def with_progress(blocks: "Iterator[xr.Dataset]", config: "SimulationConfig") -> "Iterator[xr.Dataset]":
    """Yield the blocks and show the number of simulated days."""
    from aqtopo.cli.progress import ProgressBar

    progress, days, total = ProgressBar(), 0, config.days
    progress("simulated days", days, total)
    for block in blocks:
        yield block
        days += block.sizes["time"] // 24
        progress("simulated days", days, total)
