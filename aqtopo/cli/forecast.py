"""`aqtopo forecast`: one forecast as a CF dataset."""

from pathlib import Path
from typing import Annotated

import typer


def forecast(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="The run directory.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="What to write: OUT.zarr or OUT.nc.")],
    init: Annotated[
        str, typer.Option(metavar="TIME", help="Initial time, ISO 8601, UTC, such as 2018-01-15T00.")
    ],
    tag: Annotated[str, typer.Option(help="Which saved state: best, last or its name.")] = "best",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an older forecast.")] = False,
) -> None:
    """Forecast all pollutants from one hour of the run's store; write a CF-1.11 dataset."""
    from aqtopo.checkpoint import load_run
    from aqtopo.evaluation.forecast import forecast as make_forecast
    from aqtopo.evaluation.forecast import parse_init_time
    from aqtopo.evaluation.forecast_file import check_output, write_forecast

    # What can be refused without loading the network is refused first.
    init_time = parse_init_time(init)
    check_output(output, overwrite)
    dataset = make_forecast(load_run(run_dir, tag), init_time)
    write_forecast(dataset, output, overwrite)
    leads = ", ".join(map(str, dataset["lead_time"].values))
    typer.echo(f"{output}: {', '.join(map(str, dataset.data_vars))} at {leads} h from {init_time} UTC")
