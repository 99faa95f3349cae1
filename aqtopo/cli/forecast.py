"""`aqtopo forecast`: write one forecast as a CF dataset."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aqtopo.cli.options import ModelDir, SavedTag, StorePath, read_weather

if TYPE_CHECKING:
    import numpy as np

    from aqtopo.inference.load import LoadedRun


def forecast(
    run_dir: ModelDir,
    output: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="New dataset: OUT.zarr or OUT.nc.")
    ] = None,
    *,
    init: Annotated[
        list[str],
        typer.Option(metavar="TIME", help="Initial time, ISO 8601, UTC, such as 2018-01-15T00; repeatable."),
    ],
    tag: SavedTag = "best",
    store: StorePath = None,
    weather: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Weather to come, for a run that reads it: a forecast, NetCDF or zarr; or perfect, the "
            "store's own later hours.",
        ),
    ] = None,
    needs: Annotated[
        bool, typer.Option("--needs", help="Only list the hours and variables that the forecast needs.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an older forecast.")] = False,
) -> None:
    """Forecast all pollutants from one or several hours of a store; write a CF-1.11 dataset."""
    from aqtopo.inference.forecast import forecast as make_forecast
    from aqtopo.inference.forecast import forecasts, parse_init_time
    from aqtopo.inference.forecast_file import check_output, write_forecast
    from aqtopo.inference.load import load_model

    # Check the input before the network is loaded.
    init_times = list(dict.fromkeys(parse_init_time(text) for text in init))
    if output is None and not needs:
        raise ValueError("no output is named. Name OUT.nc or OUT.zarr, or list what is needed with --needs.")
    if output is not None and not needs:
        check_output(output, overwrite)
    run = load_model(run_dir, tag, store)
    if output is None or needs:
        for init_time in init_times:
            _list_needs(run, init_time)
        return
    given = read_weather([weather] if weather else [], run)
    dataset = (
        forecasts(run, init_times, given) if init_times[1:] else make_forecast(run, init_times[0], given)
    )
    write_forecast(dataset, output, overwrite)
    leads = ", ".join(map(str, dataset["lead_time"].values))
    source = f", {dataset.attrs['weather']}" if "weather" in dataset.attrs else ""
    if dataset.attrs.get("weather_outside_valid_range", "none") != "none":
        source += f" (outside the valid range, kept: {dataset.attrs['weather_outside_valid_range']})"
    names, starts = ", ".join(map(str, dataset.data_vars)), ", ".join(map(str, init_times))
    typer.echo(f"{output}: {names} at {leads} h from {starts} UTC{source}")


def _list_needs(run: "LoadedRun", init_time: "np.datetime64") -> None:
    """Print the hours and variables that a forecast needs, and those that the store lacks."""
    import numpy as np

    from aqtopo.inference.weather import needs

    fields, weather = needs(run.store, run.config.data, init_time)
    typer.echo(f"fields of a store, {run.store.path} or --store:")
    for need in fields:
        when = f"{-need.lead_h} h before" if need.lead_h else "initial time"
        absent = "" if run.store.holds(np.array(need.time)) else "; not in this store"
        typer.echo(f"  {need.time}  {when:12}  {', '.join(need.variables)}{absent}")
    if weather:
        typer.echo(f"weather forecast from init_time {init_time}, --weather:")
    for need in weather:
        typer.echo(f"  {need.time}  lead_time {need.lead_h:3}  {', '.join(need.variables)}")
