"""`aqtopo plan`: what a run will do and need, without data, device or DeepSpeed."""

from pathlib import Path
from typing import Annotated

import typer


def plan(
    config: Annotated[Path, typer.Argument(help="The run's JSON file.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Override a value of the config.")
    ] = None,
    at_epoch: Annotated[
        int, typer.Option(metavar="E", help="Give learning rates and validations for this epoch, from 0.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print only JSON.")] = False,
) -> None:
    """Count parameters, samples, steps and bytes of a run before it starts."""
    import json

    from rich.console import Console

    from aqtopo.config import load_config
    from aqtopo.planning import make_plan
    from aqtopo.planning.tables import plan_tables

    made = make_plan(load_config(config, overrides or []), at_epoch)
    if not made.calendar.from_store:
        typer.echo(
            f"There is no store at {made.config.data.store}: a complete hourly calendar of the configured "
            "years is counted.",
            err=True,
        )
    if as_json:
        typer.echo(json.dumps(made.as_json(), indent=2))
        return
    console = Console()
    for table in plan_tables(made):
        console.print(table)
