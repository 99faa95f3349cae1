"""Inspection of a store: its summary, and its faults found in one pass over the shards."""

import functools
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from aqtopo.data.channels import no_data
from aqtopo.data.check import implausible_values
from aqtopo.data.levels import implausible_level
from aqtopo.data.read_check import ABOVE_FILLS
from aqtopo.data.schema import HOURS_PER_SHARD
from aqtopo.data.shards import (
    DamagedShardError,
    read_with_deadline,
    shard_checksum,
    shard_path,
    stored_checksums,
)
from aqtopo.data.statistics import Moments
from aqtopo.data.store import Report, Statistics, Store, no_progress, open_store
from aqtopo.variables import READ_DEADLINE_S

Severity = Literal["fault", "note"]

_HOUR = np.timedelta64(1, "h")

STALE = 1e-3
"""Largest difference of stored statistics from the hours' own, as a fraction of the standard deviation."""


@dataclass(frozen=True)
class Finding:
    """One finding of `inspect_store`.

    Attributes:
        severity: a `fault` makes the store unfit for training; a `note` is usual in real data.
        subject: `schema`, `static or statistics`, `statistics`, `gaps`, `missing`, `range` or `shard`.
        text: the fact and its place.
    """

    severity: Severity
    subject: str
    text: str


def inspect_store(
    path: str | Path, report: Report = no_progress, deadline_s: float = READ_DEADLINE_S
) -> list[Finding]:
    """Return all faults and notes of a store.

    Reads every shard twice: the file, to compare its checksum, and its hours.

    Raises:
        TimeoutError: the file system did not answer for `deadline_s`.
    """
    try:
        store = open_store(path, deadline_s)
    except ValueError as error:
        return [Finding("fault", "schema", str(error))]
    implausible = implausible_values(store)
    found = [Finding("fault", "static or statistics", f"{fault}. {remedy}") for fault, remedy in implausible]
    for first, last in gaps(store):
        hours = int((last - first) / _HOUR) + 1
        found.append(Finding("note", "gaps", f"{first} to {last} ({hours} h)"))
    return [*found, *_shards(store, report)]


def _shards(store: Store, report: Report) -> Iterator[Finding]:
    starts = range(0, store.times.size, HOURS_PER_SHARD)
    read = functools.partial(read_with_deadline, store.path, deadline_s=store.deadline_s)
    checksums = read("its checksums", lambda: stored_checksums(store.path))
    if checksums.size != len(starts):
        yield Finding(
            "fault",
            "shard",
            f"{checksums.size} checksums for {len(starts)} shards: changed files cannot be detected. "
            "Write the store again with this version, which adds them.",
        )
    totals = _Totals(store)
    for number, first in enumerate(starts):
        last = min(first + HOURS_PER_SHARD, store.times.size)
        shard = shard_path(store.path, first).relative_to(store.path)
        place = f"{shard} (from {store.times[first]})"
        try:
            if checksums.size == len(starts):
                checksum = read(f"the shard {shard}", functools.partial(shard_checksum, store.path, number))
                if checksum != checksums[number]:
                    text = f"{place} differs from its checksum: it was changed after it was written"
                    yield Finding("fault", "shard", text)
            fields = store.read_span(first, last)
        except (DamagedShardError, ValueError) as error:
            text = f"{place} {error}" if isinstance(error, DamagedShardError) else str(error)
            yield Finding("fault", "shard", text)
            totals.miss(first, last)
        else:
            totals.add(first, fields)
        report("shards checked", number + 1, len(starts))
    yield from totals.findings()


class _Totals:
    """Counts over all hours: missing values, values outside the physical range, means and statistics."""

    def __init__(self, store: Store) -> None:
        self._store = store
        ranges = np.array([store.variables[name].valid_range for name in store.channels], dtype=np.float32)
        self._low, self._high = ranges[:, 0, None, None], ranges[:, 1, None, None]
        self._counted = (store.static["mask"] > 0)[None, None]
        self._cells = 0
        zero = np.zeros(len(store.channels))
        self._missing, self._outside, self._no_data = zero.copy(), zero.copy(), zero.copy()
        self._first: dict[tuple[str, bool], np.datetime64] = {}
        self._empty_hours: list[np.datetime64] = []
        self._moments = {each.years: Moments(zero, zero, zero) for each in store.statistics}
        self._by_year = {year: Moments(zero, zero, zero) for year in store.years}
        self._unread = dict.fromkeys(self._moments, 0)
        self._years = store.times.astype("datetime64[Y]").astype(int) + 1970

    def add(self, first: int, fields: NDArray[np.float32]) -> None:
        """Count the hours of a shard, (n, C, H, W), from the time index `first`."""
        store, times = self._store, self._store.times[first : first + len(fields)]
        finite = np.isfinite(fields)
        suspicious = finite & ((fields < np.maximum(self._low, ABOVE_FILLS)) | (fields > self._high))
        wrong = np.zeros_like(suspicious)
        for channel in np.flatnonzero(suspicious.any(axis=(0, 2, 3))):
            wrong[:, channel] = no_data(store.variables[store.channels[channel]], fields[:, channel])
        outside = finite & ((fields < self._low) | (fields > self._high)) & ~wrong
        self._missing += (~finite & self._counted).sum(axis=(0, 2, 3))
        self._cells += int(self._counted.sum()) * len(fields)
        for is_fault, found, total in ((False, outside, self._outside), (True, wrong, self._no_data)):
            total += found.sum(axis=(0, 2, 3))
            for channel in np.flatnonzero(found.any(axis=(0, 2, 3))):
                hour = np.flatnonzero(found[:, channel].any(axis=(1, 2)))[0]
                self._first.setdefault((store.channels[channel], is_fault), times[hour])
        self._empty_hours += list(times[~finite.any(axis=(1, 2, 3))])
        own_years = self._years[first : first + len(fields)]
        for year in np.unique(own_years).tolist():
            self._by_year[year] = self._by_year[year].merged(Moments.of(fields[own_years == year]))
        for years, moments in self._moments.items():
            covered = np.isin(own_years, years)
            if covered.any():
                self._moments[years] = moments.merged(Moments.of(fields[covered]))

    def miss(self, first: int, last: int) -> None:
        """Count unreadable hours [first, last), without which statistics cannot be compared."""
        for years in self._unread:
            self._unread[years] += int(np.isin(self._years[first:last], years).sum())

    def findings(self) -> Iterator[Finding]:
        """Yield the findings of the counts."""
        for place, name in enumerate(self._store.channels):
            if missing := self._missing[place]:
                share = missing / self._cells
                text = f"{name}: {int(missing)} values are missing inside the mask ({share:.3%})"
                yield Finding("fault" if share == 1 else "note", "missing", text)
            variable = self._store.variables[name]
            low, high = variable.valid_range
            valid = f"{low:g} to {high:g} {variable.units}"
            if wrong := self._no_data[place]:
                text = f"{name}: {int(wrong)} fill values or values far outside {valid}"
                yield Finding("fault", "range", f"{text}, the first at {self._first[name, True]}")
            if outside := self._outside[place]:
                text = f"{name}: {int(outside)} values somewhat outside {valid} are kept"
                yield Finding("note", "range", f"{text}, the first at {self._first[name, False]}")
        yield from self._levels()
        if self._empty_hours:
            text = f"{len(self._empty_hours)} hours without any value, the first {self._empty_hours[0]}"
            yield Finding("fault", "missing", f"{text}: remove these hours from the store")
        if not self._store.statistics:
            yield Finding("fault", "statistics", "the store has none: run `aqtopo data statistics`")
        for each in self._store.statistics:
            yield from self._compared(each, self._moments[each.years], self._unread[each.years])

    def _levels(self) -> Iterator[Finding]:
        for year, moments in self._by_year.items():
            for place in np.flatnonzero(moments.count > 0):
                name = self._store.channels[place]
                usual = self._store.mean.get(name, math.nan)
                fault = implausible_level(self._store.variables[name], float(moments.mean[place]), usual)
                if fault is not None:
                    yield Finding("fault", "range", f"{year} {fault}")

    def _compared(self, stored: Statistics, own: Moments, unread: int) -> Iterator[Finding]:
        if unread:
            text = f"not compared: {unread} h of their years cannot be read"
            yield Finding("note", "statistics", text)
            return
        years = ", ".join(map(str, stored.years))
        names = self._store.channels
        found = [(names[p], own.mean[p], own.std[p]) for p in np.flatnonzero(own.count > 0)]
        for name, variable in self._store.variables.items():
            if variable.kind == "static":
                values = self._store.static[name].astype(np.float64)
                found.append((name, values.mean(), values.std()))
        for name, mean, std in found:
            stored_mean, stored_std = stored.mean.get(name, np.nan), stored.std.get(name, np.nan)
            difference = np.maximum(abs(mean - stored_mean), abs(std - stored_std))
            if not difference <= STALE * max(std, 1e-12):  # also for NaN
                yield Finding(
                    "fault",
                    "statistics",
                    f"{name}: mean {stored_mean:g} and deviation {stored_std:g} are stored for {years}, but "
                    f"its values have {mean:g} and {std:g}: run `aqtopo data statistics`",
                )


def summarize_findings(findings: list[Finding]) -> dict[str, Any]:
    """Return a JSON-ready mapping of counts and findings."""
    faults = sum(finding.severity == "fault" for finding in findings)
    return {
        "faults": faults,
        "notes": len(findings) - faults,
        "findings": [asdict(finding) for finding in findings],
    }


def gaps(store: Store) -> list[tuple[np.datetime64, np.datetime64]]:
    """Return the first and last hour of each gap between the store's first and last hour."""
    before = np.flatnonzero(np.diff(store.times) > _HOUR)
    return list(zip(store.times[before] + _HOUR, store.times[before + 1] - _HOUR, strict=True))


def summarize_store(store: Store) -> dict[str, Any]:
    """Return a JSON-ready summary: shape, times, gaps, channels with units and statistics, source."""
    by_year = store.times.astype("datetime64[Y]").astype(int) + 1970
    return {
        "path": store.path,
        "source": store.source,
        "simulated": store.simulated,
        "grid": [store.lat.size, store.lon.size],
        "latitude": [float(store.lat[0]), float(store.lat[-1])],
        "longitude": [float(store.lon[0]), float(store.lon[-1])],
        "hours": int(store.times.size),
        "first": str(store.times[0]),
        "last": str(store.times[-1]),
        "hours_by_year": {str(year): int(np.count_nonzero(by_year == year)) for year in store.years},
        "gaps": [
            {"first": str(first), "last": str(last), "hours": int((last - first) // _HOUR) + 1}
            for first, last in gaps(store)
        ],
        "channels": {
            name: {
                "long_name": variable.long_name if variable else "1 where loss and scores count",
                "standard_name": variable.standard_name if variable else None,
                "units": variable.units if variable else "1",
                "valid_range": list(variable.valid_range if variable else (0.0, 1.0)),
                "pollutant": bool(variable and variable.pollutant),
                "kind": "hourly" if name in store.channels else "static",
                "mean": _number(store.mean.get(name)),
                "std": _number(store.std.get(name)),
            }
            for name, variable in ((n, store.variables.get(n)) for n in (*store.channels, *store.static))
        },
        "statistics_years": list(store.statistics_years),
        "further_statistics_years": [list(each.years) for each in store.statistics[1:]],
        "digest": store.digest,
    }


def _number(value: float | None) -> float | None:
    """Return None for NaN, which JSON lacks."""
    return None if value is None or math.isnan(value) else value
