"""Choice and order of a run's samples, and their distribution over ranks: pure functions of integers.

This module reads no file and does not know this process's rank. The unit is the step: step s of an epoch
takes the same places of the epoch's order at every world size. So 400 ranks, 392 after a lost node, and one
laptop make the same steps.

A *sample* is a row of the table: a (time, horizon) pair, or a time with all horizons. Its *place* is its
position in the epoch's order. A *share* is one rank's part of a step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aqtopo.config import RunConfig
from aqtopo.data.schema import Hours

_HOUR = np.timedelta64(1, "h")

Split = str
"""One of `train`, `validation`, `test`."""


def calendar_times(years: Sequence[int]) -> Hours:
    """Every hour of the calendar years, ascending: what a store without gaps would hold."""
    spans = [
        np.arange(f"{year}-01-01", f"{year + 1}-01-01", dtype="datetime64[h]") for year in sorted(set(years))
    ]
    return np.concatenate(spans) if spans else np.empty(0, "datetime64[h]")


def usable_times(
    times: Hours,
    years: Sequence[int],
    horizons: Sequence[int],
    stride_hours: int = 1,
    history_hours: Sequence[int] = (),
) -> Hours:
    """The times in `years` whose targets lie in the same calendar year and are present.

    Args:
        times: (T,) the hours that exist, ascending.
        years: calendar years of the split.
        horizons: lead times [h]; every one of them must have its target.
        stride_hours: keep only times whose index from the start of their year is a multiple of it.
        history_hours: hours before the start whose fields must be present; they may lie in the year before.

    Returns:
        (n,) a subset of `times`, ascending.
    """
    times = times.astype("datetime64[h]")
    year = times.astype("datetime64[Y]")
    index = (times - year.astype("datetime64[h]")) // _HOUR
    usable = np.isin(year.astype(np.int64) + 1970, list(years)) & (index % stride_hours == 0)
    for horizon in horizons:
        target = times + horizon * _HOUR
        usable &= (target.astype("datetime64[Y]") == year) & np.isin(target, times)
    for hours in history_hours:
        usable &= np.isin(times - hours * _HOUR, times)
    kept: Hours = times[usable]
    return kept


@dataclass(frozen=True, eq=False)
class SampleTable:
    """The samples of one split, numbered 0 to `len(table)` - 1 in order of time, then horizon.

    Attributes:
        times: (n,) usable start times, ascending.
        horizons: lead times [h].
        paired: a sample is one (time, horizon) pair; otherwise a time with all horizons.
    """

    times: Hours
    horizons: tuple[int, ...]
    paired: bool

    def __len__(self) -> int:
        return self.times.size * (len(self.horizons) if self.paired else 1)

    def lookup(self, samples: NDArray[np.int64]) -> tuple[Hours, NDArray[np.int64]]:
        """Start times (B,) and lead times (B, K) [h] of the samples numbered `samples` (B,)."""
        horizons = np.array(self.horizons, dtype=np.int64)
        if self.paired:
            time, horizon = np.divmod(samples, horizons.size)
            return self.times[time], horizons[horizon][:, None]
        return self.times[samples], np.broadcast_to(horizons, (samples.size, horizons.size))


def sample_table(config: RunConfig, times: Hours, split: Split) -> SampleTable:
    """The samples of a split out of the hours that exist.

    Training takes pairs or whole times as `model.lead_time` says; validation and test always take whole
    times, so that each input is read once for all its horizons.

    Raises:
        ValueError: no time of the split is usable.
    """
    data = config.data
    years, stride = {
        "train": (data.train_years, data.time_stride_hours),
        "validation": (data.validation_years, data.validation_stride_hours),
        "test": (data.test_years, data.test_stride_hours),
    }[split]
    usable = usable_times(times, years, data.horizons, stride, data.history_hours)
    if not usable.size:
        before = f" and fields {_listed(data.history_hours)} h before" if data.history_hours else ""
        raise ValueError(
            f"No time of `data.{split}_years` ({_listed(years)}) can be used: none in the store {data.store} "
            f"has targets {_listed(data.horizons)} h ahead in the same year{before}. Choose years that the "
            "store holds (`aqtopo data info` lists them), shorter horizons or a shorter history."
        )
    return SampleTable(usable, data.horizons, split == "train" and config.model.lead_time == "encoder")


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def epoch_order(seed: int, epoch: int, samples: int) -> NDArray[np.int64]:
    """A permutation of 0 to `samples` - 1, the order of an epoch, the same for every numpy and machine.

    numpy guarantees the raw stream of PCG64 seeded by SeedSequence([seed, epoch]) for ever, `permutation`
    only within a version (NEP 19). So the order is that of raw 64-bit keys; equal ones (5e-10 pairs expected
    among 138,720) keep their order.
    """
    keys = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(samples)
    return np.argsort(keys, kind="stable").astype(np.int64)


MicroBatch = list[int | None]
"""Places of one micro-batch; None is padding, a sample of weight 0 without data."""


def share(places: range, rank: int, world: int, micro_batch: int) -> list[MicroBatch]:
    """The part of a step that one of `world` ranks computes: `micro_batch` places for each micro-step.

    All ranks get equally many micro-steps, the fewest that hold all places; padding lies at the end.
    """
    assert 0 <= rank < world
    assert micro_batch > 0
    micro_steps = math.ceil(len(places) / (world * micro_batch))
    starts = ((micro_step * world + rank) * micro_batch for micro_step in range(micro_steps))
    return [
        [places[i] if i < len(places) else None for i in range(start, start + micro_batch)]
        for start in starts
    ]


@dataclass(frozen=True)
class StepPlan:
    """Partition of an epoch's samples into steps, at the configured world size.

    Attributes:
        samples: samples of an epoch.
        micro_batch: samples a rank and micro-step.
        accumulation: micro-steps a step.
        world: ranks.

    Raises:
        ValueError: there are too few samples for one micro-step.
    """

    samples: int
    micro_batch: int
    accumulation: int
    world: int

    def __post_init__(self) -> None:
        if not self.micro_steps_per_epoch:
            raise ValueError(
                f"The training years give {self.samples} samples, fewer than one micro-step needs "
                f"({self.micro_batch} on each of {self.world} ranks = {self._micro_step_samples}). Add "
                "training years, lower `data.time_stride_hours`, or use fewer ranks or a smaller micro-batch."
            )

    @classmethod
    def from_config(cls, config: RunConfig, samples: int) -> "StepPlan":
        """The plan of a run whose epoch has `samples` samples."""
        return cls(samples, config.micro_batch, config.accumulation, config.world_size)

    @property
    def _micro_step_samples(self) -> int:
        return self.micro_batch * self.world

    @property
    def train_batch(self) -> int:
        """G: samples of a full step, fixed for the life of the run."""
        return self._micro_step_samples * self.accumulation

    @property
    def micro_steps_per_epoch(self) -> int:
        """Whole micro-steps of an epoch; what is left of an incomplete one is dropped."""
        return self.samples // self._micro_step_samples

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer updates of an epoch; the last may have fewer micro-steps than the others."""
        return math.ceil(self.micro_steps_per_epoch / self.accumulation)

    def validation_steps(self, every: int) -> dict[int, int]:
        """When an epoch is validated: after every so many micro-steps, at the end of the step they fall in.

        Returns:
            Micro-steps done, by the step of the epoch (from 1) after which they are validated. Of several
            that fall into one step only the last counts. Empty where an epoch is shorter than that.
        """
        last = self.micro_steps_per_epoch
        due = range(every, last + 1, every)
        return {math.ceil(micro_step / self.accumulation): micro_step for micro_step in due}

    def step_places(self, step_in_epoch: int) -> range:
        """The places that a step of the epoch takes."""
        assert 0 <= step_in_epoch < self.steps_per_epoch
        used = self.micro_steps_per_epoch * self._micro_step_samples
        start = step_in_epoch * self.train_batch
        return range(start, min(start + self.train_batch, used))


def evaluation_share(samples: int, rank: int, world: int) -> NDArray[np.int64]:
    """The samples that one of `world` ranks evaluates: a consecutive part; shares differ by at most one.

    Consecutive hours share shards, and daily means need all the forecasts of a day in one place.
    """
    assert 0 <= rank < world
    return np.arange(samples * rank // world, samples * (rank + 1) // world, dtype=np.int64)
