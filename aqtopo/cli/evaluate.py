"""`aqtopo evaluate`: what a run's forecasts are worth."""

import contextlib
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from aqtopo.cli.progress import Progress


class Split(StrEnum):
    """The parts of a run's data that may be scored."""

    VALIDATION = "validation"
    TEST = "test"


def evaluate(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="The run directory.")],
    tag: Annotated[str, typer.Option(help="Which saved state: best, last or its name.")] = "best",
    split: Annotated[Split, typer.Option(help="Which years to score.")] = Split.TEST,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """Score a run beside persistence and climatology; write RUN/scores.json."""
    from rich.console import Console

    # Some libraries log to stdout, which belongs to the result alone.
    with contextlib.redirect_stdout(sys.stderr):
        from aqtopo.checkpoint import load_run
        from aqtopo.evaluation.evaluate import evaluate as score
        from aqtopo.evaluation.score_file import write_scores
        from aqtopo.evaluation.table import TABLE_WIDTH, score_table, summary

        scores = score(load_run(run_dir, tag), split.value, Progress())
        written = write_scores(scores, run_dir)
    if as_json:
        typer.echo(written.read_text(encoding="utf-8"), nl=False)
        return
    # On a narrower terminal lines wrap; rich would cut figures off instead.
    console = Console(width=max(Console().width, TABLE_WIDTH), highlight=False)
    console.print(score_table(scores))
    console.print(summary(scores))
    console.print(f"written to {written}", soft_wrap=True)
