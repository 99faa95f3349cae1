"""`aqtopo doctor`: the preflight checks of a run, without training."""

import typer

from aqtopo.cli.options import ConfigFile, Json, Overrides, print_json


def doctor(config: ConfigFile, overrides: Overrides = None, as_json: Json = False) -> None:
    """Compare versions, data, kernels, clocks and folders of all ranks, as `train` does at its start.

    With `data.stage`, also check that every node has room for its copy of the data.
    Start it in the same way as the run: `srun ... aqtopo doctor CONFIG`.
    """
    from dataclasses import asdict

    from rich.table import Table

    from aqtopo.cli.terminal import new_console
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
        print_json(asdict(checkup))
    elif launch.is_main:
        table = Table(title=f"{launch.size} rank(s), compared in {checkup.seconds:.1f} s")
        table.add_column("fact")
        table.add_column("on all ranks" if not checkup.problems else "on most ranks", overflow="fold")
        for name, value in checkup.facts.items():
            table.add_row(name, value)
        new_console().print(table)
        if not checkup.problems:
            typer.echo("no problem found")
    checkup.raise_problems(in_full=launch.is_main)
