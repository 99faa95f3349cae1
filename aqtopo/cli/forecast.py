"""`aqtopo forecast`: write one forecast as a CF dataset."""

from pathlib import Path
from typing import Annotated

import typer

from aqtopo.cli.options import SavedTag


def forecast(
    run_dir: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run directory, or folder of `aqtopo export`.")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="New dataset: OUT.zarr or OUT.nc.")],
    init: Annotated[
        str, typer.Option(metavar="TIME", help="Initial time, ISO 8601, UTC, such as 2018-01-15T00.")
    ],
    tag: SavedTag = "best",
    store: Annotated[
        Path | None, typer.Option(help="Store of the initial hour, for an exported model; default: its own.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an older forecast.")] = False,
) -> None:
    """Forecast all pollutants from one hour of a store; write a CF-1.11 dataset."""
    from aqtopo.inference.forecast import forecast as make_forecast
    from aqtopo.inference.forecast import parse_init_time
    from aqtopo.inference.forecast_file import check_output, write_forecast
    from aqtopo.inference.load import load_model

    # Check the input before the network is loaded.
    init_time = parse_init_time(init)
    check_output(output, overwrite)
    dataset = make_forecast(load_model(run_dir, tag, store), init_time)
    write_forecast(dataset, output, overwrite)
    leads = ", ".join(map(str, dataset["lead_time"].values))
    typer.echo(f"{output}: {', '.join(map(str, dataset.data_vars))} at {leads} h from {init_time} UTC")
