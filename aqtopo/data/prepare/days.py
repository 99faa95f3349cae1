"""Regridding of days in parallel: each day becomes a part file and a report.

The report of a day is written last, by rename: a day with a report is finished, and a killed command resumes
with the other days. A day is made again if its files have changed since. Days are independent.

Shapes: h hours present, C channels, H x W target grid, n x m source grid.
"""

import json
import multiprocessing
import os
import threading
import tokenize
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from aqtopo.data.forcings import HOURS_PER_DAY
from aqtopo.data.prepare.archives import Inventory
from aqtopo.data.prepare.hourly import Fields, SourceGrid, UnusableFileError, read_hour, rotate_wind
from aqtopo.data.prepare.regrid import Regridder
from aqtopo.data.schema import Hours
from aqtopo.data.store import Report
from aqtopo.refusal import READ_ERRORS, file_named
from aqtopo.safe_files import is_special, replacing
from aqtopo.variables import DYNAMIC_VARIABLES

_HOUR = np.timedelta64(1, "h")
_MAX_IGNORED = 100
"""Ignored files in the report of a day."""


@dataclass
class DayReport:
    """Content of a day's files.

    Attributes:
        day: UTC, YYYY-MM-DD.
        hours: hours present, ascending.
        missing: reason by missing hour; an hour without a file has no entry.
        damaged: truncated archives.
        ignored: members of archives and duplicates with other values that are not used, with the reason.
        sources: size and time of modification [ns] of the day's files by path.
        duplicated: hours with more than one usable file; the first by path is used.
        missing_cells: number of covered target cells without a value, by channel, over all hours.
        out_of_range: number of physically impossible source values, by channel; they become missing.
        converted: hours by "channel: units found".
        temperature: mean over the grid [K] by hour; None if missing.
    """

    day: str
    hours: list[int] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    sources: dict[str, list[int]] = field(default_factory=dict)
    duplicated: list[int] = field(default_factory=list)
    missing_cells: Counter[str] = field(default_factory=Counter)
    out_of_range: Counter[str] = field(default_factory=Counter)
    converted: Counter[str] = field(default_factory=Counter)
    temperature: list[float | None] = field(default_factory=lambda: [None] * HOURS_PER_DAY)


@dataclass(frozen=True, eq=False)
class DayMaker:
    """Converter of days to part files.

    Attributes:
        parts: folder of the part files.
        inventory: the hourly files.
        hours_ahead: offset of the file names' time zone from UTC [h].
        grid: source grid.
        regridder: weights from source to target grid.
        turn_wind: rotate u, v from grid directions to east and north.
    """

    parts: Path
    inventory: Inventory
    hours_ahead: int
    grid: SourceGrid
    regridder: Regridder
    turn_wind: bool

    def make(self, day: np.datetime64) -> DayReport:
        """Read, regrid and write a day."""
        report, fields = DayReport(str(day)), dict[int, Fields]()
        report.sources = self.inventory.versions(day_stamps(day, self.hours_ahead))
        self._collect(day, report, fields)
        report.hours = sorted(fields)
        # An hour may have a damaged file and a usable one.
        report.missing = {hour: why for hour, why in report.missing.items() if int(hour) not in fields}
        if fields:
            write_atomically(part_path(self.parts, day), np.stack([fields[hour] for hour in report.hours]))
        report.ignored = report.ignored[:_MAX_IGNORED]
        write_atomically(self.parts / f"{day}.json", vars(report))
        return report

    def is_due(self, day: np.datetime64) -> bool:
        """Return true if there are files of the day that it was not made from."""
        return is_due(self.parts, self.inventory, day, self.hours_ahead)

    def _collect(self, day: np.datetime64, report: DayReport, fields: dict[int, Fields]) -> None:
        stamps, covered = day_stamps(day, self.hours_ahead), self.regridder.covered
        used: dict[int, str] = {}
        for file in self.inventory.read(stamps):
            if np.isnat(file.stamp):
                (report.ignored if file.ignored else report.damaged).append(f"{file.where} {file.problem}")
                continue
            hour = int((file.stamp - stamps[0]) / _HOUR)
            try:
                if file.content is None:
                    raise UnusableFileError(file.problem)
                found = read_hour(file.content, self.grid)
            except UnusableFileError as error:
                report.missing[str(hour)] = f"{file.where} {error}"
                continue
            regridded = self.regridder(
                rotate_wind(found.fields, self.grid.angle) if self.turn_wind else found.fields
            )
            if hour in fields:
                report.duplicated.append(hour)
                if not np.array_equal(fields[hour], regridded, equal_nan=True):
                    report.ignored.append(f"{file.where} differs from {used[hour]}, which is used")
                continue
            fields[hour], used[hour] = regridded, file.where
            # += removes counts of zero.
            report.out_of_range += Counter(found.out_of_range)
            report.converted += Counter(f"{name}: {units}" for name, units in found.converted.items())
            empty = (~np.isfinite(regridded) & covered).sum(axis=(1, 2))
            report.missing_cells += Counter(dict(zip(DYNAMIC_VARIABLES, empty.tolist(), strict=True)))
            report.temperature[hour] = _mean(regridded[DYNAMIC_VARIABLES.index("temp")])


def hours_of(day: np.datetime64) -> Hours:
    """Return the hours of a day (24,), UTC."""
    hours: Hours = day.astype("datetime64[h]") + np.arange(HOURS_PER_DAY) * _HOUR
    return hours


def day_stamps(day: np.datetime64, hours_ahead: int) -> Hours:
    """Return the hours of a day (24,) in the data set's time zone."""
    stamps: Hours = hours_of(day) + hours_ahead * _HOUR
    return stamps


def is_due(parts: Path, inventory: Inventory, day: np.datetime64, hours_ahead: int) -> bool:
    """Return true if there are files of the day that it was not made from."""
    versions, report = inventory.versions(day_stamps(day, hours_ahead)), report_of(parts, day)
    return bool(versions) and (report is None or not versions.items() <= report.sources.items())


def part_path(parts: Path, day: np.datetime64) -> Path:
    """Return the path of a day's fields, (h, C, H, W) float32; days without hours have no file."""
    return parts / f"{day}.npy"


def report_of(parts: Path, day: np.datetime64) -> DayReport | None:
    """Return the report of a finished day; None for others, and if it is damaged: the day is made again."""
    if is_special(parts / f"{day}.json"):
        return None
    try:
        report = _REPORT.validate_json((parts / f"{day}.json").read_bytes(), strict=True)
    except (OSError, ValidationError):
        return None
    known = set(report.hours) <= set(range(HOURS_PER_DAY)) and len(report.temperature) == HOURS_PER_DAY
    return report if known and report.day == str(day) else None


def read_part(parts: Path, report: DayReport, hour: tuple[int, ...]) -> Fields:
    """Return the fields (h, C, H, W) of a finished day with hours; `hour` is (C, H, W).

    Raises:
        ValueError: they are damaged.
    """
    day = np.datetime64(report.day, "D")
    try:
        if is_special(part_path(parts, day)):
            raise OSError("it is a pipe or a device")
        # Memory-mapped: a damaged header asks for no memory.
        fields = np.load(part_path(parts, day), mmap_mode="r")
        if fields.shape == (len(report.hours), *hour) and fields.dtype == np.float32:
            return np.asarray(fields)
        fault = f"{fields.dtype} {fields.shape}"
    except (SyntaxError, tokenize.TokenError, *READ_ERRORS) as error:
        fault = f"{type(error).__name__}: {error}"
    raise ValueError(
        f"{part_path(parts, day)} is damaged ({fault}). Remove {parts / f'{day}.json'} and repeat the "
        "command: the day is made again."
    )


def write_atomically(path: Path, content: NDArray[np.float32] | Mapping[str, Any]) -> None:
    """Write an array, or JSON, to a temporary file; fsync and rename it."""
    with replacing(path) as temporary, file_named(temporary), temporary.open("wb") as file:
        if isinstance(content, np.ndarray):
            np.save(file, content)
        else:
            file.write(json.dumps(content, indent=2).encode())
        file.flush()
        os.fsync(file.fileno())


def _mean(values: Fields) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean(dtype=np.float64)) if finite.size else None


_REPORT = TypeAdapter(DayReport)

_maker: DayMaker | None = None
"""Set once in each pool process."""


def make_days(maker: DayMaker, days: Sequence[np.datetime64], workers: int, report: Report) -> None:
    """Make every unfinished day that has files, in several processes.

    Raises:
        ValueError: a process was killed; finished days are kept.
    """
    due = [day for day in days if maker.is_due(day)]
    report("days regridded", len(days) - len(due), len(days))
    if not due:
        return
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(min(workers, len(due)), context, _start, (maker,)) as pool:
        futures = [pool.submit(_make, day) for day in due]
        try:
            for done, future in enumerate(as_completed(futures), start=len(days) - len(due) + 1):
                future.result()
                report("days regridded", done, len(days))
        except BrokenProcessPool as error:
            raise ValueError(
                "A regridding process was killed, probably for lack of memory. Repeat the command with fewer "
                "--workers: finished days are kept."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _start(maker: DayMaker) -> None:
    global _maker
    _maker = maker
    parent = multiprocessing.parent_process()
    assert parent is not None
    # Workers of a killed command must end, because the next command starts its own.
    threading.Thread(target=_exit_with, args=(parent.sentinel,), daemon=True).start()


def _exit_with(parent: int) -> None:
    wait([parent])
    os._exit(1)


def _make(day: np.datetime64) -> None:
    assert _maker is not None
    _maker.make(day)
