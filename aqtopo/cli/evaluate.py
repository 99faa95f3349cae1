"""`aqtopo evaluate`: score a run's forecasts."""

import contextlib
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aqtopo.cli.options import Json, ModelDir, SavedTag, StorePath, matching_files, read_weather
from aqtopo.cli.progress import ProgressBar

if TYPE_CHECKING:
    from aqtopo.evaluation.evaluate import EvalOptions, Evaluation
    from aqtopo.inference.load import LoadedRun


class ScoredSplit(StrEnum):
    """Splits that can be scored."""

    VALIDATION = "validation"
    TEST = "test"


class Weighting(StrEnum):
    """Weights of the cells in the scores."""

    NONE = "none"
    AREA = "area"


class Detail(StrEnum):
    """Optional tables."""

    SEASON = "season"
    HOUR = "hour"
    AREA = "area"
    STATION = "station"
    EXCEEDANCES = "exceedances"
    SPECTRA = "spectra"


def evaluate(
    run_dir: ModelDir,
    tag: SavedTag = "best",
    store: StorePath = None,
    split: Annotated[ScoredSplit, typer.Option(help="Years to score.")] = ScoredSplit.TEST,
    detail: Annotated[list[Detail] | None, typer.Option(help="Also print this table; repeatable.")] = None,
    every: Annotated[
        int | None,
        typer.Option(min=1, metavar="HOURS", help="Interval of initial times; default: the configured one."),
    ] = None,
    region: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=S:N,W:E", help="Box of latitudes and longitudes; repeatable."),
    ] = None,
    stations: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Observations: id, lat, lon, time (UTC), pollutant, value."),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE", help="Another model's forecasts, NetCDF or zarr; repeatable, or 'cams_*.nc'."
        ),
    ] = None,
    weather: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Weather to come, for a run that reads it: forecasts, NetCDF or zarr, repeatable; or "
            "perfect, the store's own hours.",
            show_default="perfect",
        ),
    ] = None,
    weights: Annotated[
        Weighting, typer.Option(help="Weights of the cells: none, or their area (cosine of latitude).")
    ] = Weighting.NONE,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the scores; default: RUN.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Score a model beside its baselines; write RUN/scores.json, scores.csv and scores.zarr.

    Several processes, started by `torchrun`, `deepspeed` or `srun`, share the work.
    """
    if Detail.STATION in (detail or ()) and stations is None:
        raise ValueError("--detail station needs observations. Add --stations CSV.")
    # Some libraries log to stdout, which must hold only the result.
    with contextlib.redirect_stdout(sys.stderr):
        from aqtopo.data.store import no_progress
        from aqtopo.distributed.process_group import disconnect, join
        from aqtopo.evaluation.evaluate import evaluate as score
        from aqtopo.evaluation.results import write_results
        from aqtopo.inference.load import load_model

        if output is not None and not output.is_dir():
            raise ValueError(f"--output {output} is not a folder. Create it first.")
        run = load_model(run_dir, tag, store)
        _check_folder(output or run_dir)
        options = _options(run, region or (), stations, against or (), every, weights, weather or ())
        ranks = join()
        done = score(run, split.value, ProgressBar() if ranks.rank == 0 else no_progress, ranks, options)
        disconnect()
        if ranks.rank != 0:
            return
        written = write_results(done, output or run_dir)
    if as_json:
        typer.echo(written[0].read_text(encoding="utf-8"), nl=False)
        return
    _print_tables(done, detail or ())
    typer.echo(f"written to {', '.join(map(str, written))}")


def _check_folder(folder: Path) -> None:
    from aqtopo.safe_files import check_writable

    try:
        check_writable(folder)
    except OSError as error:
        raise ValueError(
            f"the folder of the scores {folder} cannot be written ({error.strerror}). Choose another with "
            "--output DIR."
        ) from error


def _print_tables(done: "Evaluation", details: Sequence[Detail]) -> None:
    from rich.console import Console

    from aqtopo.evaluation.tables import (
        detail_table,
        kept_values,
        score_table,
        stations_left_out,
        summary,
        table_width,
    )

    # rich would truncate numbers on a narrower terminal; with this width the lines wrap.
    console = Console(width=max(Console().width, table_width(done.scores)), highlight=False)
    console.print(score_table(done.scores))
    for asked in details:
        console.print(detail_table(done, asked.value))
    for line in (stations_left_out(done) if "stations" in done.tables else "", kept_values(done.scores)):
        if line:
            console.print(line, soft_wrap=True)
    console.print(summary(done.scores))


def _options(
    run: "LoadedRun",
    regions: Sequence[str],
    stations: Path | None,
    against: Sequence[str],
    every_hours: int | None,
    weights: Weighting,
    weather: Sequence[str],
) -> "EvalOptions":
    """Read and check the optional inputs before anything is computed."""
    from aqtopo.evaluation.against import open_model
    from aqtopo.evaluation.evaluate import EvalOptions
    from aqtopo.evaluation.points import parse_region
    from aqtopo.evaluation.stations import read_stations

    data = run.config.data
    files = matching_files("--against", against)
    given = read_weather(weather, run)
    return EvalOptions(
        regions=[parse_region(text) for text in regions] or None,
        stations=None if stations is None else read_stations(stations, run.store, data.targets),
        against=open_model(files, run.store, data.targets, data.horizons) if files else None,
        weather=None if given == "perfect" else given,
        every_hours=every_hours,
        weighting=weights.value,
    )
