"""What a forecast has to beat: persistence, and the climatology of the hour of the day.

Shapes: B initial time, K horizon, C pollutant, H x W grid; values in physical units, NaN where there is none.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from aqtopo.checkpoint.ranks import ALONE, Ranks, share
from aqtopo.data.schema import Hours
from aqtopo.data.store import Store
from aqtopo.data.walk import Report, in_silence, spans

HOURS_A_DAY = 24


def channel_indices(store: Store, names: Sequence[str]) -> list[int]:
    """Where `names` lie along the channel axis of what `Store.read` gives."""
    return [store.channels.index(name) for name in names]


def persistence(
    store: Store, pollutants: Sequence[str], init_times: Hours, horizons: int
) -> NDArray[np.float32]:
    """The fields of the initial times, unchanged at each of so many horizons: (B, K, C, H, W)."""
    channels = channel_indices(store, pollutants)
    initial = np.stack([store.read(index)[channels] for index in store.locate(init_times)])
    return np.broadcast_to(initial[:, None], (len(initial), horizons, *initial.shape[1:]))


@dataclass(frozen=True)
class Climatology:
    """The mean of every cell at every hour of the day (UTC), the same all year round.

    Attributes:
        mean: (24, C, H, W); NaN in cells that never had a value at that hour.
        years: the calendar years averaged over.
    """

    mean: NDArray[np.float32]
    years: tuple[int, ...]

    def at(self, times: Hours) -> NDArray[np.float32]:
        """The fields for valid times of any shape (...): (..., C, H, W)."""
        values: NDArray[np.float32] = self.mean[hour_of_day(times)]
        return values


def hour_of_day(times: Hours) -> NDArray[np.int64]:
    """The hour, 0 to 23 UTC, of times with the resolution of an hour."""
    return times.astype("datetime64[h]").astype(np.int64) % HOURS_A_DAY


def hourly_climatology(
    store: Store,
    pollutants: Sequence[str],
    years: Sequence[int],
    report: Report = in_silence,
    ranks: Ranks = ALONE,
) -> Climatology:
    """Average each pollutant over all hours of the calendar years, by hour of the day.

    One pass, which the processes share, a shard (a day) in memory at a time, sums in float64.

    Raises:
        ValueError: the store has no hour in the years, or a shard cannot be read.
    """
    ranges = list(spans(store, years))
    if not ranges:
        raise ValueError(
            f"the store {store.path} has no hour in the training years {', '.join(map(str, years))}, so "
            "there is no climatology to compare with. Score the run on the store that it was trained on."
        )
    channels = channel_indices(store, pollutants)
    shape = (HOURS_A_DAY, len(channels), len(store.lat), len(store.lon))
    total, count = np.zeros(shape), np.zeros(shape, dtype=np.int64)
    ranges = list(share(ranges, ranks))
    done, all_hours = 0, sum(last - first for first, last in ranges)
    report("hours of climatology", done, all_hours)
    for first, last in ranges:
        values = store.read_span(first, last)[:, channels]
        finite = np.isfinite(values)
        for hour, field, known in zip(hour_of_day(store.times[first:last]), values, finite, strict=True):
            np.add(total[hour], field, out=total[hour], where=known)
            count[hour] += known
        done += last - first
        report("hours of climatology", done, all_hours)
    total, count = (ranks.add_up(torch.from_numpy(part)).numpy() for part in (total, count))
    mean = np.divide(total, count, out=np.full(shape, np.nan), where=count > 0)
    return Climatology(mean.astype(np.float32), tuple(sorted(set(years))))
