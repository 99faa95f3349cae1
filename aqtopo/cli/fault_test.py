"""`aqtopo drill`: does this run, on this machine, survive being killed?"""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from aqtopo.training.drill_verdict import DrillResult


def drill(
    config: Annotated[Path, typer.Argument(help="The run's JSON file; its store must exist.")],
    out: Annotated[Path, typer.Option(help="Folder for the drill's runs, which must not exist.")] = Path(
        "runs/drill"
    ),
    kills: Annotated[int, typer.Option(min=1, help="Kills of a run that had resumed.")] = 3,
    worlds: Annotated[str, typer.Option(help="Numbers of ranks, taken in turn.")] = "2,1,3",
    steps: Annotated[int, typer.Option(min=1, help="Steps of the run.")] = 30,
    every_steps: Annotated[int, typer.Option(min=1, help="Steps between saves.")] = 3,
    seed: Annotated[int, typer.Option(help="Of who is killed when.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Train, kill -9 random ranks at random moments, resume with others, compare with a run in peace."""
    from aqtopo.training.drill import drill as run_drill

    sizes = parse_worlds(worlds)
    _clear_up_in_silence()
    result = run_drill(config, out, kills, sizes, steps, every_steps, seed)
    if as_json:
        verdict = {"passed": result.passed, "problems": result.problems}
        print(json.dumps(asdict(result) | verdict, indent=2))  # noqa: T201
    else:
        _print(result)
    if not result.passed:
        raise typer.Exit(1)


def parse_worlds(text: str) -> list[int]:
    """Numbers of ranks: `2,1,3`.

    Raises:
        ValueError: one of them is none.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(
            f"--worlds {text!r}: must be numbers of ranks with commas between them, such as 2,1,3."
        )
    return [int(part) for part in parts]


def _clear_up_in_silence() -> None:
    """Killed ranks leave semaphores, which Python's tracker removes at the end; its warning is no news."""
    given, silent = os.environ.get("PYTHONWARNINGS"), "ignore:resource_tracker:UserWarning"
    os.environ["PYTHONWARNINGS"] = f"{given},{silent}" if given else silent


def _print(result: "DrillResult") -> None:
    phases, ranks = (
        ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        for counts in (result.phases, {f"of rank {rank}": n for rank, n in result.ranks.items()})
    )
    print(  # noqa: T201
        f"drill {'passed' if result.passed else 'FAILED'}: {result.kills} kills ({phases}; {ranks}), "
        f"{result.resumes} verified resumes, {len(result.lost_tags)} committed tags lost, {result.steps} "
        f"losses compared, largest relative difference {result.worst_loss:.2g}, of weights and moments "
        f"{result.worst_state:.2g}, {result.seconds:.0f} s"
    )
    for problem in result.problems:
        print(problem)  # noqa: T201
