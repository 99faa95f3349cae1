"""`aqtopo data`: summarise and check a data store, and compute its statistics."""

from pathlib import Path
from typing import Annotated, Any

import typer

from aqtopo.cli.options import Json, YearsCommand, print_json
from aqtopo.variables import READ_DEADLINE_S

app = typer.Typer(no_args_is_help=True, help="Summarise and check a data store, and compute its statistics.")

StorePath = Annotated[Path, typer.Argument(help="The zarr store.", metavar="STORE")]

Deadline = Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="Timeout of the file system.")]

_GAPS_SHOWN = 10


@app.command()
def info(store: StorePath, deadline: Deadline = READ_DEADLINE_S, as_json: Json = False) -> None:
    """Show the grid, hours, gaps, channels, statistics and source of a store."""
    from aqtopo.data.inspection import summarize_store
    from aqtopo.data.store import open_store

    summary = summarize_store(open_store(store, deadline))
    if as_json:
        print_json(summary)
    else:
        _print_summary(summary)


@app.command(cls=YearsCommand)
def statistics(
    store: StorePath,
    years: Annotated[list[int], typer.Option(help="Training years, one or several: 2013 2014.")],
    deadline: Deadline = READ_DEADLINE_S,
) -> None:
    """Compute the mean and standard deviation of every channel over the training years; save them."""
    from aqtopo.cli.progress import ProgressBar
    from aqtopo.data.inspection import summarize_store
    from aqtopo.data.statistics import write_statistics
    from aqtopo.data.store import open_store

    written = write_statistics(store, years, ProgressBar(), deadline)
    _print_channels(
        f"Statistics over {', '.join(map(str, written.years))}, saved in {store}",
        summarize_store(open_store(store, deadline, written.years))["channels"],
    )


@app.command()
def check(
    store: StorePath,
    strict: Annotated[bool, typer.Option("--strict", help="Count notes as faults.")] = False,
    deadline: Deadline = READ_DEADLINE_S,
    as_json: Json = False,
) -> None:
    """Check every hour of a store: layout, gaps, missing and impossible values, statistics, checksums.

    The exit code is 1 if there is a fault. Gaps and a few missing values are only notes, because real data
    have them; training omits samples that need a missing hour.
    """
    from aqtopo.cli.progress import ProgressBar
    from aqtopo.data.inspection import inspect_store, summarize_findings

    found = inspect_store(store, ProgressBar(), deadline)
    result = summarize_findings(found)
    if as_json:
        print_json(result)
    else:
        for finding in found:
            typer.echo(f"{finding.severity}  {finding.subject}: {finding.text}")
        typer.echo(f"{store}: {result['faults']} fault(s), {result['notes']} note(s)")
    if result["faults"] or (strict and found):
        raise typer.Exit(1)


def _print_summary(summary: dict[str, Any]) -> None:
    rows, columns = summary["grid"]
    south_north, west_east = summary["latitude"], summary["longitude"]
    years = ", ".join(f"{year} ({hours} h)" for year, hours in summary["hours_by_year"].items())
    typer.echo(f"store    {summary['path']}")
    typer.echo(f"source   {summary['source']}{' (simulated)' if summary['simulated'] else ''}")
    typer.echo(
        f"grid     {rows} x {columns}, latitude {south_north[0]:g} to {south_north[1]:g}, "
        f"longitude {west_east[0]:g} to {west_east[1]:g} degrees"
    )
    typer.echo(f"hours    {summary['hours']}, {summary['first']} to {summary['last']} UTC: {years}")
    missing = summary["gaps"]
    typer.echo(f"gaps     {len(missing)}, {sum(gap['hours'] for gap in missing)} h missing")
    for gap in missing[:_GAPS_SHOWN]:
        typer.echo(f"         {gap['first']} to {gap['last']} ({gap['hours']} h)")
    if len(missing) > _GAPS_SHOWN:
        typer.echo(f"         and {len(missing) - _GAPS_SHOWN} more (see --json)")
    covered = ", ".join(map(str, summary["statistics_years"]))
    further = "; ".join(", ".join(map(str, years)) for years in summary["further_statistics_years"])
    _print_channels(
        (f"Statistics over {covered}" if covered else "No statistics yet: run `aqtopo data statistics`")
        + (f" (also stored: {further})" if further else ""),
        summary["channels"],
    )


def _print_channels(title: str, channels: dict[str, dict[str, Any]]) -> None:
    from rich.table import Table

    from aqtopo.cli.terminal import new_console

    table = Table("channel", "meaning", "units", title=title, title_justify="left")
    table.add_column("mean", justify="right")
    table.add_column("std", justify="right")
    for name, channel in channels.items():
        numbers = ["-" if channel[key] is None else f"{channel[key]:.6g}" for key in ("mean", "std")]
        table.add_row(name, channel["long_name"], channel["units"], *numbers)
    new_console().print(table)
