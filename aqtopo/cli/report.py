"""`aqtopo report`: write a page about a run or an ablation."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_ABLATION",
            help="Run directory, trained and evaluated, or folder of a finished `aqtopo ablate`.",
        ),
    ],
    init: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Initial time of the maps, UTC, such as 2018-01-15T00. "
            "Default: the most polluted one of the test period.",
        ),
    ] = None,
    place: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=LAT,LON", help="Also show the attention of this place; repeatable."),
    ] = None,
) -> None:
    """Write a self-contained report.html to the folder: scores, maps, learning curves, set-up."""
    _need_extra()
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}. Name a run directory, or an ablation's folder.")
    # Some libraries log to stdout, which must hold only the result.
    with contextlib.redirect_stdout(sys.stderr):
        from aqtopo.ablation.results_file import is_ablation
        from aqtopo.inference.forecast import parse_init_time
        from aqtopo.report import parse_place, write_ablation_report, write_report

        if is_ablation(folder):
            if init is not None or place:
                option = "--place" if init is None else "--init"
                raise ValueError(
                    f"{option} is for maps, but the page of the ablation {folder} has none. Omit {option}."
                )
            page = write_ablation_report(folder)
        else:
            places = [parse_place(text) for text in place or ()]
            page = write_report(folder, None if init is None else parse_init_time(init), places)
    typer.echo(f"{page} ({page.stat().st_size / 1e6:.1f} MB): open it in any browser")


def _need_extra() -> None:
    """Check that the `report` extra is installed."""
    from importlib.util import find_spec

    absent = [package for package in ("jinja2", "matplotlib") if find_spec(package) is None]
    if absent:
        raise ValueError(
            f"`aqtopo report` needs {' and '.join(absent)}, which {'is' if len(absent) == 1 else 'are'} not "
            "installed. Install with `pip install 'aqtopo[report]'`."
        )
