"""`aqtopo train`: one process of a run, whatever started it."""

from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[Path, typer.Argument(help="The run's JSON file.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Override a value of the config.")
    ] = None,
    stop_after: Annotated[
        int | None, typer.Option(min=1, help="Save and end after this many steps.", metavar="STEPS")
    ] = None,
    resume: Annotated[
        str,
        typer.Option(
            metavar="auto|never|TAG|PATH",
            help="Go on from the last saved state if there is one; never; or from this one.",
        ),
    ] = "auto",
    allow_change: Annotated[
        list[str] | None,
        typer.Option(metavar="A.B", help="A setting (or section) that may differ from the saved run's."),
    ] = None,
    allow_missing: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A parameter that starts fresh.")
    ] = None,
    allow_unexpected: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A saved tensor that this run does not have.")
    ] = None,
    rename: Annotated[
        list[str] | None, typer.Option(metavar="OLD=NEW", help="A saved tensor that has another name now.")
    ] = None,
) -> None:
    """Train a model; start it alone or under `deepspeed`, `torchrun` or `srun`. Resumes by itself."""
    from aqtopo.checkpoint.changes import Allowed, parse_renames
    from aqtopo.config import load_config
    from aqtopo.distributed.launch import read_launch
    from aqtopo.training.prepare import ResumeOptions
    from aqtopo.training.start import train as run_training

    allowed = Allowed(
        tuple(allow_change or ()),
        tuple(allow_missing or ()),
        tuple(allow_unexpected or ()),
        parse_renames(rename or ()),
    )
    run_training(
        load_config(config, overrides or []), read_launch(), stop_after, ResumeOptions(resume, allowed)
    )
