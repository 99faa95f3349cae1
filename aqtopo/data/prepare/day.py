"""One day of a reanalysis: its hourly files regridded into one part file, and what was found in them.

The unit of work and of resuming: a day's report is written last and aside, so a day is either finished or not
there. Days know nothing of each other.

Shapes: h hours that are there, C channels, H x W target grid, n x m source grid.
"""

import json
import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aqtopo.data.prepare.archives import Inventory
from aqtopo.data.prepare.hourly import Fields, Hour, SourceGrid, UnusableFileError, eastward, read_hour
from aqtopo.data.prepare.regrid import Regridder
from aqtopo.data.schema import Hours
from aqtopo.variables import DYNAMIC_VARIABLES

HOURS_A_DAY = 24
_HOUR = np.timedelta64(1, "h")


@dataclass
class DayReport:
    """What a day's files held.

    Attributes:
        day: UTC, YYYY-MM-DD.
        hours: hours of the day that are there, ascending.
        missing: why the others are not, by hour; an hour without any file is simply absent.
        damaged: archives that broke off.
        duplicated: hours of which there was more than one usable file; the first by path was taken.
        missing_cells: target cells inside the source grid without a value, by channel, over all hours.
        out_of_range: source cells whose value was physically impossible and became missing, by channel.
        converted: hours by "channel: units found".
        temperature: mean over the grid [K] by hour; null where there is none.
    """

    day: str
    hours: list[int] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    duplicated: list[int] = field(default_factory=list)
    missing_cells: dict[str, int] = field(default_factory=dict)
    out_of_range: dict[str, int] = field(default_factory=dict)
    converted: dict[str, int] = field(default_factory=dict)
    temperature: list[float | None] = field(default_factory=lambda: [None] * HOURS_A_DAY)


@dataclass(frozen=True, eq=False)
class DayMaker:
    """Makes the part files of days; holds what is the same for all of them.

    Attributes:
        parts: the folder of the part files.
        inventory: where the hourly files lie.
        ahead: hours by which the time zone of the file names is ahead of UTC.
        grid: the source grid.
        regridder: from it to the target grid.
        turn_wind: whether u, v follow the source grid and are turned to east and north.
    """

    parts: Path
    inventory: Inventory
    ahead: int
    grid: SourceGrid
    regridder: Regridder
    turn_wind: bool

    def make(self, day: np.datetime64) -> DayReport:
        """Read, regrid and keep a day; nothing is done for a day that is finished."""
        finished = report_of(self.parts, day)
        if finished is not None:
            return finished
        report, fields = DayReport(str(day)), dict[int, Fields]()
        self._collect(day, report, fields)
        report.hours = sorted(fields)
        # A later file may have stood in for a damaged one.
        report.missing = {hour: why for hour, why in report.missing.items() if int(hour) not in fields}
        if fields:
            _write_aside(part_path(self.parts, day), np.stack([fields[hour] for hour in report.hours]))
        _write_aside(_report_path(self.parts, day), report)
        return report

    def is_to_do(self, day: np.datetime64) -> bool:
        """Whether anything was found that can hold hours of the day, and the day is not finished."""
        sources = self.inventory.sources(self._stamps(day))
        return bool(sources.files or sources.archives) and report_of(self.parts, day) is None

    def _stamps(self, day: np.datetime64) -> Hours:
        stamps: Hours = hours_of(day) + self.ahead * _HOUR
        return stamps

    def _collect(self, day: np.datetime64, report: DayReport, fields: dict[int, Fields]) -> None:
        stamps = self._stamps(day)
        out_of_range, missing_cells, converted = Counter[str](), Counter[str](), Counter[str]()
        covered = self.regridder.covered
        for file in self.inventory.sources(stamps).read(stamps):
            if np.isnat(file.stamp):
                report.damaged.append(f"{file.where} {file.problem}")
                continue
            hour = int((file.stamp - stamps[0]) / _HOUR)
            try:
                if file.content is None:
                    raise UnusableFileError(file.problem)
                if hour in fields:
                    report.duplicated.append(hour)
                    continue
                found = read_hour(file.content, self.grid)
            except UnusableFileError as error:
                report.missing[str(hour)] = f"{file.where} {error}"
                continue
            regridded = self._regrid(found)
            fields[hour] = regridded
            out_of_range.update(found.out_of_range)
            converted.update(f"{name}: {units}" for name, units in found.converted.items())
            empty = (~np.isfinite(regridded) & covered).sum(axis=(1, 2))
            missing_cells.update(dict(zip(DYNAMIC_VARIABLES, empty.tolist(), strict=True)))
            report.temperature[hour] = _mean(regridded[DYNAMIC_VARIABLES.index("temp")])
        # Unary plus leaves out the zeros; a plain dict, since asdict cannot copy a Counter.
        report.out_of_range, report.converted = dict(+out_of_range), dict(converted)
        report.missing_cells = dict(+missing_cells)

    def _regrid(self, hour: Hour) -> Fields:
        fields = eastward(hour.fields, self.grid.angle) if self.turn_wind else hour.fields
        return self.regridder(fields)


def hours_of(day: np.datetime64) -> Hours:
    """(24,) the hours of a day, UTC."""
    hours: Hours = day.astype("datetime64[h]") + np.arange(HOURS_A_DAY) * _HOUR
    return hours


def part_path(parts: Path, day: np.datetime64) -> Path:
    """The file of a day's fields, (h, C, H, W) float32; not there for a day without any hour."""
    return parts / f"{day}.npy"


def _report_path(parts: Path, day: np.datetime64) -> Path:
    return parts / f"{day}.json"


def report_of(parts: Path, day: np.datetime64) -> DayReport | None:
    """The report of a finished day; None for one that is not."""
    path = _report_path(parts, day)
    return DayReport(**json.loads(path.read_text())) if path.exists() else None


def _write_aside(path: Path, what: NDArray[np.float32] | DayReport) -> None:
    """Write a file under another name, make sure that it is on disk, and rename it."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with aside.open("wb") as file:
        if isinstance(what, DayReport):
            file.write(json.dumps(asdict(what)).encode())
        else:
            np.save(file, what)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)


def _mean(values: Fields) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean(dtype=np.float64)) if finite.size else None
