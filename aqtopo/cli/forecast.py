"""`aqtopo forecast`: write one forecast as a CF dataset."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aqtopo.cli.options import ModelDir, SavedTag, StorePath, read_weather

if TYPE_CHECKING:
    import numpy as np

    from aqtopo.inference.load import LoadedRun
    from aqtopo.inference.weather import Need


def forecast(
    run_dir: ModelDir,
    output: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="New dataset: OUT.zarr or OUT.nc.")
    ] = None,
    *,
    init: Annotated[
        list[str] | None,
        typer.Option(metavar="TIME", help="Initial time, ISO 8601, UTC, such as 2018-01-15T00; repeatable."),
    ] = None,
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
    init_times = list(dict.fromkeys(parse_init_time(text) for text in init or ()))
    if needs:
        run = load_model(run_dir, tag, store)
        for init_time in init_times:
            _list_needs(run, init_time)
        if not init_times:
            _list_needs(run, None)
        return
    if output is None:
        raise ValueError("no output is named. Name OUT.nc or OUT.zarr, or list what is needed with --needs.")
    if not init_times:
        raise ValueError("no initial time is named. Name one, such as --init 2018-01-15T00.")
    check_output(output, overwrite)
    run = load_model(run_dir, tag, store)
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


def _list_needs(run: "LoadedRun", init_time: "np.datetime64 | None") -> None:
    """Print the hours and variables that a forecast needs, and those that the store lacks."""
    import numpy as np

    from aqtopo.inference.weather import needs

    start = np.datetime64(0, "h") if init_time is None else init_time
    fields, weather = needs(run.store, run.config.data, start)
    typer.echo(f"fields of a store, {run.store.path} or --store:")
    for need in fields:
        when = f"{-need.lead_h} h before" if need.lead_h else "initial time"
        absent = init_time is not None and not run.store.holds(np.array(need.time))
        _list_need(init_time, need, f"{when:12}", "; not in this store" if absent else "")
    if weather:
        typer.echo(
            "weather forecast, --weather:"
            if init_time is None
            else f"weather forecast from init_time {init_time}, --weather:"
        )
    for need in weather:
        _list_need(init_time, need, f"lead_time {need.lead_h:3}")


def _list_need(init_time: "np.datetime64 | None", need: "Need", when: str, note: str = "") -> None:
    time = "" if init_time is None else f"{need.time}  "
    typer.echo(f"  {time}{when}  {', '.join(need.variables)}{note}")
