"""`aqtopo train`: one process of a training run."""

from typing import Annotated

import typer

from aqtopo.cli.options import AllowChange, AllowUnexpected, ConfigFile, Overrides


def train(
    config: ConfigFile,
    overrides: Overrides = None,
    stop_after: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="STEP",
            help="Save and end after this step of the run, counted over all its starts.",
        ),
    ] = None,
    resume: Annotated[
        str,
        typer.Option(
            metavar="auto|never|TAG|PATH",
            help="Saved state to resume: the last one, if there is any (auto); none (never); or this one.",
        ),
    ] = "auto",
    allow_change: AllowChange = None,
    allow_missing: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Parameter that the saved state may lack; repeatable."),
    ] = None,
    allow_unexpected: AllowUnexpected = None,
    rename: Annotated[
        list[str] | None, typer.Option(metavar="OLD=NEW", help="New name of a saved tensor; repeatable.")
    ] = None,
) -> None:
    """Train a model in one process, or under `deepspeed`, `torchrun` or `srun`; resume if possible."""
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
