"""`aqtopo forecast`: one forecast as a CF dataset."""

from pathlib import Path
from typing import Annotated

import typer


def forecast(
    run_dir: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run directory, or what `aqtopo export` wrote.")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="What to write: OUT.zarr or OUT.nc.")],
    init: Annotated[
        str, typer.Option(metavar="TIME", help="Initial time, ISO 8601, UTC, such as 2018-01-15T00.")
    ],
    tag: Annotated[str, typer.Option(help="Which saved state: best, last or its name.")] = "best",
    store: Annotated[
        Path | None, typer.Option(help="Hours to start from, for an exported model; its own by default.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an older forecast.")] = False,
) -> None:
    """Forecast all pollutants from one hour of a store; write a CF-1.11 dataset."""
    from aqtopo.inference.forecast import forecast as make_forecast
    from aqtopo.inference.forecast import parse_init_time
    from aqtopo.inference.forecast_file import check_output, write_forecast
    from aqtopo.inference.load import load_model

    # What can be refused without loading the network is refused first.
    init_time = parse_init_time(init)
    check_output(output, overwrite)
    dataset = make_forecast(load_model(run_dir, tag, store), init_time)
    write_forecast(dataset, output, overwrite)
    leads = ", ".join(map(str, dataset["lead_time"].values))
    typer.echo(f"{output}: {', '.join(map(str, dataset.data_vars))} at {leads} h from {init_time} UTC")
