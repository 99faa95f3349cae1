"""Hits and false alarms for days above the limits of China's air-quality standard.

A day is a calendar day in Beijing (UTC+8), as in GB 3095-2012, and its mean needs at least 20 hourly values.
The model forecasts a few lead times only, so the daily mean at lead time k averages the forecasts from k
hours before each hour of the day. That needs a forecast every hour; truth and baselines are averaged over
the same hours.

Shapes: F forecast, B initial time, K horizon, C pollutant with a limit, A area, H x W grid.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from aqtopo.data.samples import evaluation_share
from aqtopo.data.schema import Hours
from aqtopo.distributed.process_group import RankGroup
from aqtopo.evaluation.points import ScoredBatch, valid_times
from aqtopo.evaluation.scores import ScoreAxes, Values, all_reduce

LIMITS = MappingProxyType({"pm25": 75.0, "pm10": 150.0, "so2": 150.0, "no2": 80.0, "co": 4000.0})
"""Limits of the 24-hour mean [ug m-3]: GB 3095-2012, table 1, grade II (residential areas). Ozone has a limit
for the highest 8-hour mean only, which a few lead times cannot provide.
"""

MIN_HOURS = 20
"""Hourly values that a 24-hour mean needs: GB 3095-2012, table 4."""

NO_DAILY_MEANS = (
    f"No day has forecasts for {MIN_HOURS} of its hours at one lead time, so there are no 24-hour means. "
    "Score forecasts from every hour: aqtopo evaluate --every 1."
)
"""Message if no outcome was counted."""

_BEIJING = np.timedelta64(8, "h")
_OUTCOMES = ("hits", "misses", "false_alarms", "correct_negatives")


@dataclass(eq=False)
class _DaySum:
    """Sums over the hours of a day: values (F + 1, C, H, W), truth last, and number of hours (C, H, W)."""

    values: Values
    hours: Values


class Exceedances:
    """Counts of days and cells above the limits, with a few days at a time in memory.

    Args:
        axes: axes of the counts; pollutants without a limit are skipped.
        init_times: of all processes.
        ranks: number of processes that share them.
    """

    def __init__(self, axes: ScoreAxes, init_times: Hours, ranks: int) -> None:
        self._axes = axes
        self._channels = [c for c, name in enumerate(axes.pollutants) if name in LIMITS]
        self._pollutants = [axes.pollutants[c] for c in self._channels]
        self._limits = np.array([LIMITS[name] for name in self._pollutants])[:, None, None]
        names, grid = axes.areas.names, axes.areas.cells.shape[1:]
        per_pair = (len(axes.horizons_h), len(self._channels))
        self._counts = np.zeros((len(_OUTCOMES), len(axes.forecasts), *per_pair, len(names)))
        self._blank = (len(self._channels), *grid)
        self._open: dict[tuple[int, int], _DaySum] = {}
        self._split = _split_days(init_times, axes.horizons_h, ranks)

    def add(self, batch: ScoredBatch) -> None:
        """Add a batch; initial times must ascend."""
        channels = self._channels
        known = batch.scored[:, :, channels]
        fields = [batch.forecasts[name] for name in self._axes.forecasts] + [batch.truth]
        values = np.stack([np.where(known, field[:, :, channels], 0.0) for field in fields])
        days = _natural_day(batch.valid_times)
        for b, k in np.ndindex(*days.shape):
            day = self._day(k, int(days[b, k]))
            day.values += values[:, b, k]
            day.hours += known[b, k]

    def _day(self, lead: int, day: int) -> _DaySum:
        """Return the sums of a day. A new day closes the earlier days of its lead time."""
        if (lead, day) not in self._open:
            for key in [key for key in self._open if key[0] == lead and key not in self._split]:
                self._close(key)
            self._open[lead, day] = self._empty_day()
        return self._open[lead, day]

    def _empty_day(self) -> _DaySum:
        return _DaySum(np.zeros((len(self._axes.forecasts) + 1, *self._blank)), np.zeros(self._blank))

    def _close(self, key: tuple[int, int]) -> None:
        """Count the cells of a complete day by outcome."""
        day = self._open.pop(key)
        enough = day.hours >= MIN_HOURS
        above = day.values / np.maximum(day.hours, 1.0) > self._limits
        forecast, truth = above[:-1], above[-1]
        outcomes = np.stack([forecast & truth, ~forecast & truth, forecast & ~truth, ~forecast & ~truth])
        self._counts[:, :, key[0]] += self._axes.areas.counts(outcomes & enough)

    def all_reduce(self, ranks: RankGroup) -> None:
        """Complete the days that several processes share, then sum the counts over all processes."""
        for key in sorted(self._split):
            day = self._open.setdefault(key, self._empty_day())
            all_reduce((day.values, day.hours), ranks)
            if ranks.rank == 0:
                self._close(key)
            else:
                del self._open[key]
        for key in list(self._open):
            self._close(key)
        all_reduce((self._counts,), ranks)

    def tables(self) -> Mapping[str, xr.Dataset]:
        """Return the number of days and cells of each outcome (forecast, area, pollutant, horizon)."""
        axes, dims = self._axes, ("forecast", "horizon", "pollutant", "area")
        counts = xr.Dataset(
            {name: (dims, self._counts[o].astype(np.int64)) for o, name in enumerate(_OUTCOMES)},
            coords={
                "forecast": list(axes.forecasts),
                "area": list(axes.areas.names),
                "pollutant": self._pollutants,
                "limit": ("pollutant", self._limits.ravel(), {"units": "ug m-3"}),
                "horizon": ("horizon", list(axes.horizons_h), {"units": "hours"}),
            },
            attrs={"limits": "24-hour means, GB 3095-2012, grade II", "least_hours_of_a_day": MIN_HOURS},
        )
        return {"exceedances": counts.transpose("forecast", "area", "pollutant", "horizon")}


def exceedance_scores(counts: xr.Dataset) -> xr.Dataset:
    """Compute scores from the counts of `Exceedances.tables`.

    Returns:
        the counts with `pod` (probability of detection), hits / (hits + misses), `far` (false alarm ratio),
        false alarms / (hits + false alarms), and `csi` (critical success index), hits / (hits + misses +
        false alarms); NaN if the denominator is 0.
    """
    hits, misses, false_alarms = (counts[name].astype(np.float64) for name in _OUTCOMES[:3])
    return counts.assign(
        pod=hits / (hits + misses),
        far=false_alarms / (hits + false_alarms),
        csi=hits / (hits + misses + false_alarms),
    )


def _natural_day(times: Hours) -> NDArray[np.int64]:
    """Return days since 1970-01-01 in Beijing."""
    return (times + _BEIJING).astype("datetime64[D]").astype(np.int64)


def _split_days(init_times: Hours, horizons_h: Sequence[int], ranks: int) -> set[tuple[int, int]]:
    """Return (lead index, day) pairs that several processes may share: the first and last of each process."""
    if ranks == 1:
        return set()
    shares = [evaluation_share(init_times.size, rank, ranks) for rank in range(ranks)]
    ends = init_times[[end for share in shares if share.size for end in (share[0], share[-1])]]
    days_by_end = _natural_day(valid_times(ends, horizons_h))
    return {(k, int(day)) for days in days_by_end for k, day in enumerate(days)}
