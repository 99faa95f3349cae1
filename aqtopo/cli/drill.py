"""`aqtopo drill`: does this run, on this machine, survive being killed?"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def drill(
    config: Annotated[Path, typer.Argument(help="The run's JSON file; its store must exist.")],
    out: Annotated[Path, typer.Option(help="Folder for the drill's runs, which must not exist.")] = Path(
        "runs/drill"
    ),
    kills: Annotated[int, typer.Option(min=1, help="How many times a random rank is killed.")] = 3,
    worlds: Annotated[str, typer.Option(help="Numbers of ranks, taken in turn.")] = "2,1,3",
    steps: Annotated[int, typer.Option(min=1, help="Steps of the run.")] = 30,
    every_steps: Annotated[int, typer.Option(min=1, help="Steps between saves.")] = 3,
    seed: Annotated[int, typer.Option(help="Of who is killed when.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Train, kill -9 random ranks at random moments, resume with others, compare with a run in peace."""
    from aqtopo.training.drill import drill as run_drill

    sizes = [int(world) for world in worlds.split(",")]
    result = run_drill(config, out, kills, sizes, steps, every_steps, seed)
    if as_json:
        print(json.dumps(asdict(result) | {"passed": result.passed}, indent=2))  # noqa: T201
    else:
        phases = ", ".join(f"{count} {phase}" for phase, count in sorted(result.phases.items()))
        verdict = "passed" if result.passed else "FAILED"
        print(  # noqa: T201
            f"drill {verdict}: {result.kills} kills ({phases}), {result.resumes} verified resumes, "
            f"{len(result.lost_tags)} committed tags lost, {result.steps} losses compared, largest relative "
            f"difference {result.worst_loss:.2g}, {result.seconds:.0f} s"
        )
        for lost in result.lost_tags:
            print(lost)  # noqa: T201
    if not result.passed:
        raise typer.Exit(1)
