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
) -> None:
    """Train a model; start it alone or under `deepspeed`, `torchrun` or `srun`."""
    from aqtopo.config import load_config
    from aqtopo.training.distributed import read_launch
    from aqtopo.training.loop import train as run_training

    run_training(load_config(config, overrides or []), read_launch(), stop_after)
