"""The Chinese Air Quality Reanalysis, as it is distributed, to a data store.

In three stages, each of which a killed command finds finished or does again:

1. every day to a part file, by several processes (`aqtopo.data.prepare.day`);
2. the parts to a store, in order (`write_store`, which writes aside and renames);
3. statistics, and the quality report beside the store.

The parts lie in `<OUT>.parts` and take as much room as the store; they are removed at the end. Memory holds
a day a process and a few days in the second stage, however many years there are.
"""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

from aqtopo.data.grid import Grid
from aqtopo.data.prepare.archives import Inventory
from aqtopo.data.prepare.day import HOURS_A_DAY, DayMaker, DayReport, hours_of, part_path, report_of
from aqtopo.data.prepare.hourly import SourceGrid, UnusableFileError, read_grid, read_hour
from aqtopo.data.prepare.pool import make_days
from aqtopo.data.prepare.quality import quality_report
from aqtopo.data.prepare.rasters import elevation, population
from aqtopo.data.prepare.regrid import Regridder
from aqtopo.data.schema import FIELDS_DIMS, HOURS_PER_SHARD, STATIC_DIMS
from aqtopo.data.statistics import write_statistics
from aqtopo.data.store import Store, open_store
from aqtopo.data.walk import Report, in_silence
from aqtopo.data.write import write_store
from aqtopo.variables import DYNAMIC_VARIABLES, STATIC_CHANNELS

TimeZone = Literal["UTC", "Beijing"]
HOURS_AHEAD: dict[TimeZone, int] = {"UTC": 0, "Beijing": 8}

SOURCE = "Chinese Air Quality Reanalysis (CAQRA; Kong et al. 2021, doi:10.5194/essd-13-529-2021)"

_BLOCK_DAYS = 4
_WEIGHTS_FILE, _GRID_FILE, _RECIPE_FILE, _LOCK_FILE = "weights.npz", "grid.npz", "recipe.json", "lock"
_PROBED_FILES = 48
"""Files tried for the source grid before giving up: two days."""


@dataclass(frozen=True)
class Recipe:
    """How a store is made.

    Attributes:
        source: the folder that the data set was downloaded to.
        out: the store to write.
        years: calendar years (UTC).
        train_years: the years of the statistics.
        time_zone: of the hours in the file names.
        grid: the target grid.
        turn_wind: u, v follow the source grid's columns and rows instead of east and north.
        elevation: a NetCDF or GeoTIFF file of heights [m]; None for the altitude map that pvlib ships.
        population: likewise of inhabitants [km-2]; None for 0 everywhere.
        workers: processes.
    """

    source: Path
    out: Path
    years: tuple[int, ...]
    train_years: tuple[int, ...]
    time_zone: TimeZone
    grid: Grid
    turn_wind: bool = False
    elevation: Path | None = None
    population: Path | None = None
    workers: int = 1

    def __post_init__(self) -> None:
        unknown = sorted(set(self.train_years) - set(self.years))
        if unknown or not self.train_years:
            raise ValueError(
                f"The training years {', '.join(map(str, self.train_years))} are not all among the years "
                f"{', '.join(map(str, self.years))}. The statistics are taken over years of the store."
            )

    @property
    def parts(self) -> Path:
        """The folder of the part files."""
        return self.out.with_name(f"{self.out.name}.parts")

    @property
    def report(self) -> Path:
        """The quality report."""
        return self.out.with_name(f"{self.out.name}.quality.json")

    @property
    def days(self) -> list[np.datetime64]:
        """Every day of the years, ascending."""
        spans = [
            np.arange(f"{year}-01-01", f"{year + 1}-01-01", dtype="datetime64[D]") for year in self.years
        ]
        return list(np.concatenate(spans))

    @property
    def of_a_day(self) -> dict[str, Any]:
        """What a part depends on, so that parts of another recipe are not taken."""
        return {
            "source": str(self.source.resolve()),
            "time_zone": self.time_zone,
            "shape": list(self.grid.shape),
            "lat": list(self.grid.lat),
            "lon": list(self.grid.lon),
            "turn_wind": self.turn_wind,
        }

    @property
    def of_the_store(self) -> dict[str, Any]:
        """What else a store depends on, as it is kept in its attributes."""
        elevation, population = self.elevation, self.population
        return {
            "years": list(self.years),
            "elevation_source": "pvlib Altitude.h5" if elevation is None else elevation.name,
            "population_source": "none: 0 everywhere" if population is None else population.name,
        }


def prepare(recipe: Recipe, report: Report = in_silence) -> dict[str, Any]:
    """Make the store, or go on where a killed run was; the quality report, which is also kept as JSON.

    Raises:
        ValueError: the source, a file given or the settings are unusable, the store exists already, or a
            process was killed (what is finished stays finished).
    """
    # The recipe comes into the folder of the parts first, and goes first: without it there are no days there
    # that a report could be made of.
    if recipe.out.exists() and not (recipe.parts / _RECIPE_FILE).exists():
        raise ValueError(f"{recipe.out} exists already and is not overwritten. Choose another name.")
    with _claimed(recipe):
        if not recipe.out.exists():
            maker = _day_maker(recipe)
            static = _static(recipe, maker.regridder)
            _check_room(recipe, maker)
            make_days(maker, recipe.days, recipe.workers, report)
            _assemble(recipe, static, report)
        _check_made_for(open_store(recipe.out), recipe)
        statistics = write_statistics(recipe.out, recipe.train_years, report)
        quality = quality_report(_reports(recipe), statistics, recipe.time_zone, open_store(recipe.out))
        aside = recipe.report.with_name(f"{recipe.report.name}.tmp")
        aside.write_text(json.dumps(quality, indent=2))
        aside.rename(recipe.report)
    (recipe.parts / _RECIPE_FILE).unlink()
    shutil.rmtree(recipe.parts)
    return quality


@contextmanager
def _claimed(recipe: Recipe) -> Iterator[None]:
    """Hold the folder of the parts for this process alone; the lock ends with it, however it ends."""
    try:
        recipe.parts.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{recipe.out} cannot be written ({error}). Choose another place.") from error
    with (recipe.parts / _LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"Another process is preparing {recipe.out}. Wait for it.") from error
        _check_recipe(recipe)
        # Nobody else writes the store, so what a killed run left of it belongs to nobody.
        shutil.rmtree(recipe.out.with_name(f"{recipe.out.name}.partial"), ignore_errors=True)
        yield


def _check_recipe(recipe: Recipe) -> None:
    path = recipe.parts / _RECIPE_FILE
    if path.exists():
        before = json.loads(path.read_text())
        changed = [name for name, value in recipe.of_a_day.items() if before.get(name) != value]
        if changed:
            raise ValueError(
                f"{recipe.parts} holds days made with another {', '.join(changed)}. Give the same settings "
                "to go on with them, or remove the folder to begin anew."
            )
    else:
        path.write_text(json.dumps(recipe.of_a_day))


def _day_maker(recipe: Recipe) -> DayMaker:
    inventory = Inventory.of(recipe.source)
    ahead = HOURS_AHEAD[recipe.time_zone]
    grid_file, weights_file = recipe.parts / _GRID_FILE, recipe.parts / _WEIGHTS_FILE
    if grid_file.exists() and weights_file.exists():
        with np.load(grid_file) as kept:
            grid = SourceGrid(kept["lat"], kept["lon"])
        regridder = Regridder.load(weights_file, recipe.grid.shape)
    else:
        grid = _find_grid(inventory, recipe, ahead)
        regridder = Regridder.between(grid.lat, grid.lon, recipe.grid)
        for path in (grid_file, weights_file):
            aside = path.with_name(f"aside_{path.name}")
            if path is grid_file:
                np.savez(aside, lat=grid.lat, lon=grid.lon)
            else:
                regridder.save(aside)
            aside.rename(path)
    return DayMaker(recipe.parts, inventory, ahead, grid, regridder, recipe.turn_wind)


def _find_grid(inventory: Inventory, recipe: Recipe, ahead: int) -> SourceGrid:
    """The grid of the first hourly file that can be used; many useless ones end the command at once."""
    problems: list[str] = []
    for day in recipe.days:
        stamps = hours_of(day) + np.timedelta64(ahead, "h")
        for file in inventory.sources(stamps).read(stamps):
            try:
                if file.content is None:
                    raise UnusableFileError(file.problem)
                grid = read_grid(file.content)
                read_hour(file.content, grid)
            except UnusableFileError as error:
                problems.append(f"{file.where} {error}")
                if len(problems) == _PROBED_FILES:
                    break
            else:
                return grid
        if len(problems) == _PROBED_FILES:
            break
    found = f"none of {len(problems)} can be used. {problems[0]}" if problems else "there is none"
    raise ValueError(
        f"{recipe.source} was searched for an hourly file of {', '.join(map(str, recipe.years))}: {found}. "
        "Check the folder, --years and --time-zone."
    )


def _static(recipe: Recipe, regridder: Regridder) -> xr.DataArray:
    by_name = {
        "elevation": elevation(recipe.elevation, recipe.grid),
        "population": population(recipe.population, recipe.grid),
        "lat2d": recipe.grid.lat2d,
        "lon2d": recipe.grid.lon2d,
        "mask": regridder.covered,
    }
    stacked = np.stack([np.asarray(by_name[name], dtype=np.float32) for name in STATIC_CHANNELS])
    return xr.DataArray(stacked, dims=STATIC_DIMS, coords={"static_channel": list(STATIC_CHANNELS)})


def _reports(recipe: Recipe) -> list[DayReport]:
    """Every day's report in order; a day of which there are no files has an empty one."""
    return [report_of(recipe.parts, day) or DayReport(str(day)) for day in recipe.days]


def _check_made_for(store: Store, recipe: Recipe) -> None:
    """Refuse a store that a killed run made complete, but of other years or other ground."""
    for name, wanted in recipe.of_the_store.items():
        made_for = store.attributes.get(name)
        if made_for != wanted:
            raise ValueError(
                f"{recipe.out} is there already, made with {name} {made_for}, not {wanted}. Give the same "
                f"settings, or remove it and {recipe.parts}."
            )


def _check_room(recipe: Recipe, maker: DayMaker) -> None:
    """Refuse a disk without room for the days there are files of, as parts and in the store."""
    rows, columns = recipe.grid.shape
    day_bytes = HOURS_A_DAY * len(DYNAMIC_VARIABLES) * rows * columns * 4
    to_do = sum(maker.is_to_do(day) for day in recipe.days)
    finished = sum(report_of(recipe.parts, day) is not None for day in recipe.days)
    needed = day_bytes * (2 * to_do + finished)
    free = shutil.disk_usage(recipe.parts).free
    if free < needed:
        raise ValueError(
            f"{recipe.parts.parent} has {free / 1e9:.1f} GB free, and the days and the store need up to "
            f"{needed / 1e9:.1f} GB (the days are removed at the end). Choose another place or fewer years."
        )


def _assemble(recipe: Recipe, static: xr.DataArray, report: Report) -> None:
    reports = _reports(recipe)
    if not any(day.hours for day in reports):
        raise ValueError(f"{recipe.source} has no usable hour in {', '.join(map(str, recipe.years))}.")
    write_store(_blocks(recipe, static, reports, report), recipe.out)


def _blocks(
    recipe: Recipe, static: xr.DataArray, reports: Sequence[DayReport], report: Report
) -> Iterator[xr.Dataset]:
    """The days joined and cut into blocks of whole shards: where hours are missing, shards are not days."""
    hour = (len(DYNAMIC_VARIABLES), *recipe.grid.shape)
    fields, times = np.empty((0, *hour), np.float32), np.empty(0, "datetime64[h]")
    block_hours = _BLOCK_DAYS * HOURS_PER_SHARD
    for done, day in enumerate(reports, start=1):
        if day.hours:
            date = np.datetime64(day.day, "D")
            fields = np.concatenate([fields, np.load(part_path(recipe.parts, date))])
            times = np.concatenate([times, hours_of(date)[day.hours]])
        if times.size >= block_hours:
            yield _block(recipe, static, fields[:block_hours], times[:block_hours])
            fields, times = fields[block_hours:], times[block_hours:]
        report("days stored", done, len(reports))
    if times.size:
        yield _block(recipe, static, fields, times)


def _block(
    recipe: Recipe, static: xr.DataArray, fields: np.ndarray[Any, Any], times: np.ndarray[Any, Any]
) -> xr.Dataset:
    digest = hashlib.sha256(json.dumps(recipe.of_a_day, sort_keys=True).encode()).hexdigest()
    return xr.Dataset(
        {"fields": (FIELDS_DIMS, fields), "static": static},
        coords={
            "time": times.astype("datetime64[ns]"),
            "channel": list(DYNAMIC_VARIABLES),
            "lat": recipe.grid.lat_centres,
            "lon": recipe.grid.lon_centres,
        },
        attrs={
            "source": SOURCE,
            **recipe.of_the_store,
            "time_zone_of_source": recipe.time_zone,
            "regridding": "bilinear, mean over points of each cell; cells without a value take no part",
            "recipe_sha256": digest,
        },
    )
