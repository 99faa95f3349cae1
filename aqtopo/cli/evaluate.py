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
    region: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=S:N,W:E", help="A box of latitudes and longitudes to score apart."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """Score a run beside persistence and climatology; write RUN/scores.json and RUN/scores.zarr."""
    from rich.console import Console

    # Some libraries log to stdout, which belongs to the result alone.
    with contextlib.redirect_stdout(sys.stderr):
        from aqtopo.checkpoint import load_run
        from aqtopo.data.walk import in_silence
        from aqtopo.evaluation.areas import parse_region
        from aqtopo.evaluation.evaluate import evaluate as score
        from aqtopo.evaluation.score_file import write_scores
        from aqtopo.evaluation.sums_file import write_tables
        from aqtopo.evaluation.table import TABLE_WIDTH, score_table, summary
        from aqtopo.training.distributed import disconnect, join

        regions = None if region is None else [parse_region(text) for text in region]
        ranks = join()
        is_main = ranks.rank == 0
        done = score(
            load_run(run_dir, tag), split.value, Progress() if is_main else in_silence, ranks, regions
        )
        disconnect()
        if not is_main:
            return
        write_tables(done.tables, run_dir)
        written = write_scores(done.scores, run_dir, done.strata)
    scores = done.scores
    if as_json:
        typer.echo(written.read_text(encoding="utf-8"), nl=False)
        return
    # On a narrower terminal lines wrap; rich would cut figures off instead.
    console = Console(width=max(Console().width, TABLE_WIDTH), highlight=False)
    console.print(score_table(scores))
    console.print(summary(scores))
    console.print(f"written to {written}", soft_wrap=True)
