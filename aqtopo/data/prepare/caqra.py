"""Conversion of the distributed Chinese Air Quality Reanalysis to a data store.

Three stages; a resumed command skips finished stages and repeats the others:

1. every day to a part file, in several processes (`aqtopo.data.prepare.days`);
2. the parts to a store, in order (`write_store`); a finished store is renamed into place;
3. statistics, and the quality report beside the store.

The parts are in `<OUT>.parts`, as large as the store, and are removed at the end. Memory holds a day per
process, and a few days in the second stage.
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

from aqtopo.data.forcings import HOURS_PER_DAY
from aqtopo.data.grid import Grid
from aqtopo.data.prepare.archives import Inventory
from aqtopo.data.prepare.days import (
    DayMaker,
    DayReport,
    day_stamps,
    hours_of,
    is_due,
    make_days,
    read_part,
    report_of,
    write_atomically,
)
from aqtopo.data.prepare.hourly import (
    OtherGridError,
    SourceGrid,
    UnusableFileError,
    read_grid,
    read_hour,
)
from aqtopo.data.prepare.quality import quality_report
from aqtopo.data.prepare.rasters import elevation, population
from aqtopo.data.prepare.regrid import Regridder
from aqtopo.data.schema import FIELDS_DIMS, HOURS_PER_SHARD, STATIC_DIMS
from aqtopo.data.statistics import write_statistics
from aqtopo.data.store import Report, Statistics, Store, no_progress, open_store
from aqtopo.data.write import write_store
from aqtopo.refusal import READ_ERRORS
from aqtopo.safe_files import is_special, open_plain, remove
from aqtopo.variables import DYNAMIC_VARIABLES, STATIC_CHANNELS

TimeZone = Literal["UTC", "Beijing"]
HOURS_AHEAD: dict[TimeZone, int] = {"UTC": 0, "Beijing": 8}

SOURCE = "Chinese Air Quality Reanalysis (CAQRA; Kong et al. 2021, doi:10.5194/essd-13-529-2021)"

_CHUNK_DAYS = 4
_RECIPE_FILE, _LOCK_FILE, _STORE = "recipe.json", "lock", "store"
_PROBED_DAYS, _PROBED_FILES = 8, 3
_MAX_PROBES = 48
"""Largest number of unusable files in the search for the source grid: two days."""


@dataclass(frozen=True)
class Recipe:
    """Settings of a conversion.

    Attributes:
        source: folder of the downloaded data set.
        out: store to write.
        years: calendar years (UTC).
        train_years: years of the statistics.
        time_zone: time zone of the file names.
        grid: target grid.
        turn_wind: rotate u, v from grid directions to east and north.
        elevation: NetCDF or GeoTIFF of elevation [m]; None for pvlib's altitude map.
        population: NetCDF or GeoTIFF of inhabitants [km-2]; None for 0 everywhere.
        workers: number of processes.
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
                f"--train-years {', '.join(map(str, self.train_years))} are not a subset of --years "
                f"{', '.join(map(str, self.years))}. Choose years of the store."
            )

    @property
    def parts(self) -> Path:
        """Folder of the part files."""
        return self.out.with_name(f"{self.out.name}.parts")

    @property
    def report(self) -> Path:
        """Path of the quality report."""
        return self.out.with_name(f"{self.out.name}.quality.json")

    @property
    def days(self) -> list[np.datetime64]:
        """All days of the years, ascending."""
        spans = [
            np.arange(f"{year}-01-01", f"{year + 1}-01-01", dtype="datetime64[D]") for year in self.years
        ]
        return list(np.concatenate(spans))

    @property
    def part_settings(self) -> dict[str, Any]:
        """Settings that the part files depend on."""
        return {
            "source": str(self.source.resolve()),
            "time_zone": self.time_zone,
            "shape": list(self.grid.shape),
            "lat": list(self.grid.lat),
            "lon": list(self.grid.lon),
            "turn_wind": self.turn_wind,
        }

    @property
    def store_settings(self) -> dict[str, Any]:
        """Further settings that the store depends on, as in its attributes."""
        elevation, population = self.elevation, self.population
        return {
            "years": list(self.years),
            "elevation_source": "pvlib Altitude.h5" if elevation is None else elevation.name,
            "population_source": "none: 0 everywhere" if population is None else population.name,
        }


def prepare(recipe: Recipe, report: Report = no_progress) -> dict[str, Any]:
    """Make the store, or resume a killed run; return the quality report, which is also written as JSON.

    Raises:
        ValueError: the settings or files are invalid, the store exists, or a process was killed (finished
            days are kept).
    """
    # The recipe file is written first and removed first: without it, the store is not an unfinished one.
    if recipe.out.exists() and not (recipe.parts / _RECIPE_FILE).exists():
        raise ValueError(f"{recipe.out} exists already. Choose another name.")
    with _locked(recipe):
        inventory, hours_ahead = Inventory.of(recipe.source), HOURS_AHEAD[recipe.time_zone]
        if recipe.out.exists():
            _check_store_settings(open_store(recipe.out), recipe)
            _check_unchanged(inventory, recipe, hours_ahead)
        else:
            grid = _find_grid(inventory, recipe, hours_ahead)
            _check_years(inventory, recipe, hours_ahead)
            regridder = Regridder.between(grid.lat, grid.lon, recipe.grid)
            static = _static(recipe, regridder)
            maker = DayMaker(recipe.parts, inventory, hours_ahead, grid, regridder, recipe.turn_wind)
            _check_free_space(recipe, maker)
            make_days(maker, recipe.days, recipe.workers, report)
            reports = _reports(recipe)
            if not any(day.hours for day in reports):
                years = ", ".join(map(str, recipe.years))
                raise ValueError(f"{recipe.source} has no usable hour in {years}.")
            # In the folder of the parts, where the next command removes what a killed one has left.
            write_store(_chunks(recipe, static, reports, report), recipe.parts / _STORE)
            (recipe.parts / _STORE).rename(recipe.out)
        # The report is there, without statistics, if they cannot be computed.
        _write_report(recipe, inventory, None)
        _check_train_years(recipe)
        quality = _write_report(recipe, inventory, write_statistics(recipe.out, recipe.train_years, report))
    (recipe.parts / _RECIPE_FILE).unlink()
    shutil.rmtree(recipe.parts)
    return quality


def _write_report(recipe: Recipe, inventory: Inventory, statistics: Statistics | None) -> dict[str, Any]:
    store = open_store(recipe.out)
    quality = quality_report(_reports(recipe), statistics, recipe.time_zone, store, inventory.ignored)
    write_atomically(recipe.report, quality)
    return quality


def _check_years(inventory: Inventory, recipe: Recipe, hours_ahead: int) -> None:
    """Refuse a year without files before days are made."""
    for year in recipe.years:
        days = [day for day in recipe.days if str(day).startswith(f"{year}-")]
        if not any(inventory.paths(day_stamps(day, hours_ahead)) for day in days):
            raise ValueError(
                f"{recipe.source} has no file of {year}. Leave it out of --years, or add its files."
            )


def _check_train_years(recipe: Recipe) -> None:
    """Refuse years of the statistics without a usable hour."""
    absent = sorted(set(recipe.train_years) - set(open_store(recipe.out).years))
    if absent:
        raise ValueError(
            f"{recipe.source} has no usable hour in {', '.join(map(str, absent))}; {recipe.report} gives the "
            "reasons. Repeat the command with other --train-years: the store is kept."
        )


def _check_unchanged(inventory: Inventory, recipe: Recipe, hours_ahead: int) -> None:
    """Refuse to finish a store of a killed run if files were added or replaced since its days were made."""
    for day in recipe.days:
        if is_due(recipe.parts, inventory, day, hours_ahead):
            raise ValueError(
                f"Files of {day} in {recipe.source} have changed since {recipe.out} was made. Remove "
                f"{recipe.out} and repeat the command: only the days of changed files are made again."
            )


@contextmanager
def _locked(recipe: Recipe) -> Iterator[None]:
    """Lock the folder of the parts; the lock ends with the process."""
    try:
        recipe.parts.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{recipe.out} cannot be written ({error}). Choose another path.") from error
    with open_plain(recipe.parts / _LOCK_FILE, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"Another process is preparing {recipe.out}. Wait until it ends.") from error
        _check_part_settings(recipe)
        # Because of the lock, these are the remainders of a killed run.
        for leftover in (*recipe.parts.glob("*.tmp"), recipe.parts / _STORE):
            remove(leftover)
        yield


def _check_part_settings(recipe: Recipe) -> None:
    """Write the settings of the part files, or refuse to resume with other ones."""
    path = recipe.parts / _RECIPE_FILE
    if path.exists():
        try:
            if is_special(path):
                raise OSError("it is a pipe or a device")
            before = dict(json.loads(path.read_bytes()))
        except READ_ERRORS as error:
            raise ValueError(f"{path} is damaged ({error}). Remove {recipe.parts} to restart.") from error
        changed = [name for name, value in recipe.part_settings.items() if before.get(name) != value]
        if changed:
            raise ValueError(
                f"{recipe.parts} holds days made with another {', '.join(changed)}. Give the same settings "
                "to resume, or remove the folder to restart."
            )
        return
    others = sorted(each.name for each in recipe.parts.iterdir() if each.name != _LOCK_FILE)
    if any(name.endswith((".npy", ".json")) for name in others):
        raise ValueError(f"{recipe.parts} holds days without the settings they were made with. Remove it.")
    if others:
        raise ValueError(
            f"{recipe.parts} holds {others[0]}, which `aqtopo prepare` did not write, and the folder is "
            "removed at the end. Move it away, or choose another name for the store."
        )
    write_atomically(path, recipe.part_settings)


def _find_grid(inventory: Inventory, recipe: Recipe, hours_ahead: int) -> SourceGrid:
    """Return the grid of the first usable hourly file.

    Compares it with further files of some days, spread over all years. Gives up after `_MAX_PROBES` unusable
    files.
    """
    grid: SourceGrid | None = None
    first, problems = "", list[str]()
    days = [day for day in recipe.days if inventory.paths(day_stamps(day, hours_ahead))]
    spread = days[:: max(1, len(days) // _PROBED_DAYS)]
    for number, day in enumerate(dict.fromkeys([*spread, *days])):
        if (grid is not None and number >= len(spread)) or len(problems) >= _MAX_PROBES:
            break
        usable = 0
        for file in inventory.read(day_stamps(day, hours_ahead)):
            if file.ignored:
                continue
            try:
                if file.content is None:
                    raise UnusableFileError(file.problem)
                found = read_grid(file.content) if grid is None else grid
                read_hour(file.content, found)
            except OtherGridError as error:
                raise ValueError(
                    f"{file.where} {error}, which is {first}. Remove the files of the wrong grid."
                ) from error
            except UnusableFileError as error:
                problems.append(f"{file.where} {error}")
                continue
            first = first or file.where
            grid, usable = found, usable + 1
            if usable == _PROBED_FILES:
                break
    if grid is not None:
        return grid
    reason = f"{len(problems)} files are unusable. First: {problems[0]}" if problems else "no file found"
    raise ValueError(
        f"{recipe.source} has no usable hourly file of {', '.join(map(str, recipe.years))}: {reason}. "
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
    """Return the reports of all days in order; a day without files has an empty one."""
    return [report_of(recipe.parts, day) or DayReport(str(day)) for day in recipe.days]


def _check_store_settings(store: Store, recipe: Recipe) -> None:
    """Refuse a complete store of a killed run that was made with other settings."""
    for name, wanted in recipe.store_settings.items():
        found = store.attributes.get(name)
        if found != wanted:
            raise ValueError(
                f"{recipe.out} exists already with {name} {found}, not {wanted}. Give the same settings, or "
                f"remove it and {recipe.parts}."
            )


def _check_free_space(recipe: Recipe, maker: DayMaker) -> None:
    """Refuse a disk that cannot hold the remaining days twice, as parts and in the store."""
    rows, columns = recipe.grid.shape
    day_bytes = HOURS_PER_DAY * len(DYNAMIC_VARIABLES) * rows * columns * 4
    due = sum(maker.is_due(day) for day in recipe.days)
    finished = sum(report_of(recipe.parts, day) is not None for day in recipe.days)
    needed = day_bytes * (2 * due + finished)
    free = shutil.disk_usage(recipe.parts).free
    if free < needed:
        raise ValueError(
            f"{recipe.parts.parent} has {free / 1e9:.1f} GB free; the part files and the store need up to "
            f"{needed / 1e9:.1f} GB. Choose another disk or fewer years."
        )


def _chunks(
    recipe: Recipe, static: xr.DataArray, reports: Sequence[DayReport], report: Report
) -> Iterator[xr.Dataset]:
    """Yield the days, concatenated and cut into whole shards; after missing hours, shards are not days."""
    hour = (len(DYNAMIC_VARIABLES), *recipe.grid.shape)
    fields, times = np.empty((0, *hour), np.float32), np.empty(0, "datetime64[h]")
    chunk_hours = _CHUNK_DAYS * HOURS_PER_SHARD
    for done, day in enumerate(reports, start=1):
        if day.hours:
            date = np.datetime64(day.day, "D")
            fields = np.concatenate([fields, read_part(recipe.parts, day, hour)])
            times = np.concatenate([times, hours_of(date)[day.hours]])
        if times.size >= chunk_hours:
            yield _dataset(recipe, static, fields[:chunk_hours], times[:chunk_hours])
            fields, times = fields[chunk_hours:], times[chunk_hours:]
        report("days stored", done, len(reports))
    if times.size:
        yield _dataset(recipe, static, fields, times)


def _dataset(
    recipe: Recipe, static: xr.DataArray, fields: np.ndarray[Any, Any], times: np.ndarray[Any, Any]
) -> xr.Dataset:
    digest = hashlib.sha256(json.dumps(recipe.part_settings, sort_keys=True).encode()).hexdigest()
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
            **recipe.store_settings,
            "time_zone_of_source": recipe.time_zone,
            "regridding": "bilinear, mean over points of each cell; cells without a value take no part",
            "recipe_sha256": digest,
        },
    )
