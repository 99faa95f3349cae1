"""Quality report of a prepared store: hours present, missing and changed values, statistics."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from aqtopo.data.forcings import DEGREES_PER_HOUR, HOURS_PER_DAY
from aqtopo.data.prepare.days import DayReport, hours_of
from aqtopo.data.store import Statistics, Store
from aqtopo.variables import DYNAMIC_VARIABLES

_HOUR = np.timedelta64(1, "h")

_MAX_ENTRIES = 1000
_WARMEST_LOCAL_HOUR = 15.0
"""Local solar time of the daily maximum of air temperature [h]."""

_TOLERATED_HOURS = 4.0


def quality_report(
    days: Sequence[DayReport],
    statistics: Statistics | None,
    time_zone: str,
    store: Store,
    ignored: Sequence[str] = (),
) -> dict[str, Any]:
    """Return hours, NaN shares, changed values and statistics, ready for JSON.

    Args:
        days: reports of all days.
        statistics: None before they are computed.
        time_zone: of the file names.
        store: the store.
        ignored: files that were passed over in the search, with the reason.
    """
    present = sum(len(day.hours) for day in days)
    unusable = {f"{day.day}T{int(hour):02d}": why for day in days for hour, why in day.missing.items()}
    duplicated = [f"{day.day}T{hour:02d}" for day in days for hour in day.duplicated]
    covered = int((store.static["mask"] > 0).sum())
    return {
        "store": store.path,
        "source": store.source,
        "days": len(days),
        "hours": {
            "expected": HOURS_PER_DAY * len(days),
            "present": present,
            "missing": HOURS_PER_DAY * len(days) - present,
            "unusable": len(unusable),
            "duplicated": sum(len(day.duplicated) for day in days),
        },
        "unusable": dict(list(unusable.items())[:_MAX_ENTRIES]),
        "damaged_archives": _distinct(problem for day in days for problem in day.damaged),
        "ignored": _distinct([*ignored, *(each for day in days for each in day.ignored)]),
        "missing_hours": _missing_hours(days)[:_MAX_ENTRIES],
        "duplicated_hours": duplicated[:_MAX_ENTRIES],
        "cells_outside_source": int(store.static["mask"].size) - covered,
        "missing_share": _missing_share(days, covered),
        "out_of_range": dict(sum((Counter(day.out_of_range) for day in days), Counter())),
        "converted_hours": dict(sum((Counter(day.converted) for day in days), Counter())),
        "time_zone": time_zone_check(days, time_zone, float(store.lon.mean())),
        "statistics": statistics
        and {
            "years": list(statistics.years),
            "mean": dict(statistics.mean),
            "std": dict(statistics.std),
        },
    }


def _distinct(texts: Iterable[str]) -> list[str]:
    """Return each text once: an archive may hold hours of two days."""
    return list(dict.fromkeys(texts))[:_MAX_ENTRIES]


def _missing_hours(days: Sequence[DayReport]) -> list[dict[str, Any]]:
    """Return runs of missing hours: first, last and number."""
    absent = [
        hours_of(np.datetime64(day.day, "D"))[hour]
        for day in days
        for hour in sorted(set(range(HOURS_PER_DAY)) - set(day.hours))
    ]
    if not absent:
        return []
    times = np.array(absent)
    starts = np.flatnonzero(np.diff(times, prepend=times[0] - 2 * _HOUR) > _HOUR)
    runs = np.split(times, starts[1:])
    return [{"first": str(run[0]), "last": str(run[-1]), "hours": int(run.size)} for run in runs]


def _missing_share(days: Sequence[DayReport], covered: int) -> dict[str, dict[str, float]]:
    """Return the share of cells without a value by month and channel, over the hours present."""
    cells: defaultdict[str, int] = defaultdict(int)
    missing: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for day in days:
        month = day.day[:7]
        cells[month] += len(day.hours) * covered
        missing[month].update(day.missing_cells)
    return {
        month: {name: missing[month][name] / count for name in DYNAMIC_VARIABLES}
        for month, count in cells.items()
        if count
    }


def time_zone_check(days: Sequence[DayReport], time_zone: str, longitude: float) -> dict[str, Any]:
    """Compare the warmest hour of the day with solar time: a wrong time zone shifts it by hours.

    Returns:
        The given zone, the warmest hour and the expected one [h UTC], and agreement within
        `_TOLERATED_HOURS`; None with less than a day of data.
    """
    by_hour = np.array([day.temperature for day in days], dtype=np.float64).reshape(-1, HOURS_PER_DAY)
    counts = np.isfinite(by_hour).sum(axis=0)
    expected = (_WARMEST_LOCAL_HOUR - longitude / DEGREES_PER_HOUR) % HOURS_PER_DAY
    if not counts.all():
        return {"given": time_zone, "warmest_hour": None, "expected": expected, "agrees": None}
    mean = np.where(np.isfinite(by_hour), by_hour, 0.0).sum(axis=0) / counts
    # Phase of the daily cycle; a single warmest hour would depend on the weather of one day.
    harmonic = np.sum(mean * np.exp(2j * np.pi * np.arange(HOURS_PER_DAY) / HOURS_PER_DAY))
    warmest = float(np.angle(harmonic) / (2 * np.pi) * HOURS_PER_DAY % HOURS_PER_DAY)
    difference = abs((warmest - expected + HOURS_PER_DAY / 2) % HOURS_PER_DAY - HOURS_PER_DAY / 2)
    return {
        "given": time_zone,
        "warmest_hour": warmest,
        "expected": expected,
        "agrees": bool(difference <= _TOLERATED_HOURS),
    }
