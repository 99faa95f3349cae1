"""`aqtopo prepare`: convert a published data set to a data store."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from aqtopo.cli.options import CHINA_LAT, CHINA_LON, Json, Latitudes, Longitudes, YearsCommand, print_json

app = typer.Typer(no_args_is_help=True, help="Convert a published data set to a data store.")

_SHOWN = 5


@app.callback()
def group() -> None:
    """Convert a published data set to a data store."""
    # Without this callback, typer would replace the group by its only command.


class Zone(StrEnum):
    """Time zones of file names."""

    UTC = "UTC"
    BEIJING = "Beijing"


class Frame(StrEnum):
    """Axes of the wind components."""

    EARTH = "earth"
    GRID = "grid"


@app.command(cls=YearsCommand)
def caqra(
    source: Annotated[Path, typer.Argument(help="Folder of the daily archives or files.", metavar="SRC")],
    out: Annotated[Path, typer.Argument(help="The zarr store to write.", metavar="OUT")],
    years: Annotated[list[int], typer.Option(help="Years (UTC), one or several: 2013 2014.")],
    time_zone: Annotated[Zone, typer.Option(help="Time zone of the hours in the file names.")],
    population: Annotated[
        str, typer.Option(help="NetCDF or GeoTIFF of inhabitants per km2, or `none`.", metavar="FILE|none")
    ],
    elevation: Annotated[
        Path | None,
        typer.Option(help="NetCDF or GeoTIFF of elevations [m].", show_default="pvlib's map, 5 arc minutes"),
    ] = None,
    train_years: Annotated[
        list[int] | None, typer.Option(help="Years of the statistics.", show_default="all years")
    ] = None,
    grid: Annotated[str, typer.Option(help="Latitudes x longitudes.", metavar="HxW")] = "128x256",
    lat: Latitudes = CHINA_LAT,
    lon: Longitudes = CHINA_LON,
    wind: Annotated[
        Frame, typer.Option(help="Axes of u and v: east and north, or those of the grid.")
    ] = Frame.EARTH,
    workers: Annotated[
        int, typer.Option(min=1, help="Worker processes.", show_default="number of processors")
    ] = (os.cpu_count() or 1),
    as_json: Json = False,
) -> None:
    """Regrid the Chinese Air Quality Reanalysis (CAQRA) and write it as a store.

    After a kill, the same command resumes. Exits with 1 if most files are unusable.
    """
    from aqtopo.cli.progress import ProgressBar
    from aqtopo.data.grid import Grid, parse_grid
    from aqtopo.data.prepare.caqra import Recipe, prepare

    recipe = Recipe(
        source=source,
        out=out,
        years=tuple(sorted(set(years))),
        train_years=tuple(sorted(set(train_years or years))),
        time_zone=time_zone.value,
        grid=Grid(parse_grid(grid), lat, lon),
        turn_wind=wind is Frame.GRID,
        elevation=elevation,
        population=None if population == "none" else Path(population),
        workers=workers,
    )
    quality = prepare(recipe, ProgressBar())
    if as_json:
        print_json(quality)
    else:
        _print(quality, recipe.report)
    if quality["hours"]["unusable"] > quality["hours"]["present"]:
        typer.echo("ERROR: most hourly files are unusable, see above and the report.", err=True)
        raise typer.Exit(1)


def _print(quality: dict[str, Any], report: Path) -> None:
    from rich.table import Table

    from aqtopo.cli.terminal import new_console

    hours, zone = quality["hours"], quality["time_zone"]
    typer.echo(f"{quality['store']}: {hours['present']} of {hours['expected']} hours; report in {report}")
    typer.echo(
        f"missing {hours['missing']} h ({hours['unusable']} with an unusable file), duplicated "
        f"{hours['duplicated']} h, damaged archives {len(quality['damaged_archives'])}, ignored files "
        f"{len(quality['ignored'])}, cells outside the source grid {quality['cells_outside_source']}"
    )
    for hour, why in list(quality["unusable"].items())[:_SHOWN]:
        typer.echo(f"  {hour}: {why}")
    for problem in [*quality["damaged_archives"], *quality["ignored"]][:_SHOWN]:
        typer.echo(f"  {problem}")
    for conversion, count in quality["converted_hours"].items():
        typer.echo(f"converted {conversion} in {count} h")
    if zone["agrees"] is False:
        typer.echo(
            f"WARNING: the warmest hour is {zone['warmest_hour']:.1f} UTC, expected {zone['expected']:.1f}. "
            f"Check --time-zone {zone['given']}."
        )
    months = quality["missing_share"]
    table = Table("channel", title="After regridding", title_justify="left")
    for heading in ("mean", "std", "NaN, all months", "NaN, worst month", "out of range"):
        table.add_column(heading, justify="right")
    for name in next(iter(months.values())):
        shares = {month: share[name] for month, share in months.items()}
        worst = max(shares, key=lambda month: shares[month])
        table.add_row(
            name,
            f"{quality['statistics']['mean'][name]:.6g}",
            f"{quality['statistics']['std'][name]:.6g}",
            f"{sum(shares.values()) / len(shares):.3%}",
            f"{shares[worst]:.3%} ({worst})" if shares[worst] else "-",
            str(quality["out_of_range"].get(name, 0)),
        )
    new_console().print(table)
