"""`aqtopo doctor`: would these ranks train together?"""

from pathlib import Path
from typing import Annotated

import typer


def doctor(
    config: Annotated[Path, typer.Argument(help="The run's JSON file.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Override a value of the config.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print only JSON.")] = False,
) -> None:
    """Compare versions, data, kernels, clocks and folders of all ranks, as `train` does first; then end.

    With `data.stage`, see too whether every node has room for its copy of the data.
    Start it as the run will be started: `srun ... aqtopo doctor CONFIG`.
    """
    import json
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from aqtopo.config import load_config
    from aqtopo.distributed import process_group
    from aqtopo.distributed.launch import read_launch
    from aqtopo.distributed.watchdog import start_watchdog
    from aqtopo.training.preflight import check_up
    from aqtopo.training.prepare import AUTO, ResumeOptions, prepare

    launch = read_launch()
    prepared = prepare(load_config(config, overrides or []), launch, ResumeOptions(AUTO))
    with start_watchdog(launch, prepared.run_dir) as watchdog:
        watchdog.enter("connect")
        device = process_group.connect(launch, watchdog.longest_s)
        watchdog.enter("preflight")
        checkup = check_up(prepared, device, stage_too=True)
        process_group.disconnect()
    if launch.is_main and as_json:
        typer.echo(json.dumps(asdict(checkup), indent=2))
    elif launch.is_main:
        table = Table(title=f"{launch.size} rank(s), compared in {checkup.seconds:.1f} s")
        table.add_column("what")
        table.add_column("on all ranks" if not checkup.problems else "on most ranks", overflow="fold")
        for name, value in checkup.facts.items():
            table.add_row(name, value)
        Console().print(table)
    checkup.raise_problems(in_full=launch.is_main)
