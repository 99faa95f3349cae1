"""`aqtopo plan`: predict steps, memory and time of a run, without data, device or DeepSpeed."""

from typing import Annotated

import typer

from aqtopo.cli.options import ConfigFile, Json, Overrides, print_json


def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    at_epoch: Annotated[
        int, typer.Option(metavar="E", help="Show learning rates and validations of this epoch, from 0.")
    ] = 0,
    nodes: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Number of nodes, instead of the configured one.")
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE.json",
            help="Model step time and scaling on nodes with training.ranks_per_node of these: mi250x, "
            "mi300x, a100, h100, h200, gh200; or on the machine that a file describes.",
        ),
    ] = None,
    utilization: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Share of the peak FLOP/s that --gpu assumes.")
    ] = 0.4,
    as_json: Json = False,
) -> None:
    """Count parameters, samples, steps and bytes of a run before it starts; with --gpu, model its time."""
    from rich.console import Console

    from aqtopo.config import load_config
    from aqtopo.planning.machines import find_node_type
    from aqtopo.planning.plan import batch_note, make_plan
    from aqtopo.planning.scaling import scaling, step_time
    from aqtopo.planning.tables import as_rows, plan_tables, scaling_tables

    changes = [*(overrides or []), *([] if nodes is None else [f"training.nodes={nodes}"])]
    made = make_plan(load_config(config, changes), at_epoch)
    node_type = find_node_type(gpu, made.config.training.ranks_per_node)
    same_ranks = [
        each for each in changes if not each.startswith(("training.nodes=", "training.ranks_per_node="))
    ]
    if same_ranks != changes and (note := batch_note(made.config, load_config(config, same_ranks))):
        typer.echo(note, err=True)
    if not made.calendar.from_store:
        typer.echo(
            f"There is no store at {made.config.data.store}: the plan assumes a complete hourly calendar "
            "of the configured years.",
            err=True,
        )
    rows = [] if node_type is None else scaling(made, node_type, utilization)
    if as_json:
        print_json(made.as_json() | ({"scaling": as_rows(rows)} if rows else {}))
        return
    console = Console()
    for table in plan_tables(made):
        console.print(table)
    if node_type is not None:
        here = step_time(made, node_type, made.config.training.nodes, utilization)
        for table in scaling_tables(made, node_type, utilization, here, rows):
            console.print(table)
