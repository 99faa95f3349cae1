"""`aqtopo fault-test`: kill and resume a run many times."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aqtopo.cli.options import Json, print_json

if TYPE_CHECKING:
    from aqtopo.fault_testing.result import FaultTestResult


def fault_test(
    config: Annotated[Path, typer.Argument(help="The run's JSON file; its store must exist.")],
    out: Annotated[Path, typer.Option(help="New folder for the runs.")] = Path("runs/fault_test"),
    kills: Annotated[int, typer.Option(min=1, help="Kills of a run that has a saved state.")] = 3,
    worlds: Annotated[str, typer.Option(help="Numbers of ranks, used in rotation.")] = "2,1,3",
    steps: Annotated[int, typer.Option(min=1, help="Steps of the run.")] = 30,
    every_steps: Annotated[int, typer.Option(min=1, help="Steps between saves.")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of the kills.")] = 0,
    as_json: Json = False,
) -> None:
    """Kill a run with SIGKILL and resume it, many times; compare it with an undisturbed run."""
    from aqtopo.fault_testing.fault_test import fault_test as run_fault_test

    sizes = parse_worlds(worlds)
    _ignore_leaked_semaphores()
    result = run_fault_test(config, out, kills, sizes, steps, every_steps, seed)
    if as_json:
        verdict = {"passed": result.passed, "problems": result.problems}
        print_json(asdict(result) | verdict)
    else:
        _print(result)
    if not result.passed:
        raise typer.Exit(1)


def parse_worlds(text: str) -> list[int]:
    """Parse numbers of ranks such as `2,1,3`.

    Raises:
        ValueError: the text is invalid.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(
            f"--worlds {text!r}: must be numbers of ranks with commas between them, such as 2,1,3."
        )
    return [int(part) for part in parts]


def _ignore_leaked_semaphores() -> None:
    """Suppress the resource tracker's warning about the semaphores of killed ranks."""
    given, ignored = os.environ.get("PYTHONWARNINGS"), "ignore:resource_tracker:UserWarning"
    os.environ["PYTHONWARNINGS"] = f"{given},{ignored}" if given else ignored


def _print(result: "FaultTestResult") -> None:
    phases, ranks = (
        ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        for counts in (result.phases, {f"of rank {rank}": n for rank, n in result.ranks.items()})
    )
    typer.echo(
        f"fault test {'passed' if result.passed else 'FAILED'}: {result.kills} kills ({phases}; {ranks}), "
        f"{result.resumes} verified resumes, {len(result.lost_tags)} committed tags lost, {result.steps} "
        f"losses compared, largest relative difference {result.worst_loss:.2g}, of weights and moments "
        f"{result.worst_state:.2g}, {result.seconds:.0f} s"
    )
    for problem in result.problems:
        typer.echo(problem)
