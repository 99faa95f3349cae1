"""Selection and order of a run's samples, and their distribution over ranks: pure functions.

No function here reads a file or uses this process's rank. Step s of an epoch has the same places of the
epoch's order at every world size: 400 ranks, 392 after a lost node, and one laptop compute the same steps.

A *sample* is a (time, horizon) pair or a time with all horizons. Its *place* is its position in the epoch's
order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aqtopo.config import RunConfig
from aqtopo.data.schema import Hours

PADDING = -1
"""Place of a padding sample, which has weight 0, only zeros and no valid target."""

_HOUR = np.timedelta64(1, "h")

Split = str
"""`train`, `validation` or `test`."""


def calendar_times(years: Sequence[int]) -> Hours:
    """Return every hour of the calendar years, ascending: the times of a store without gaps."""
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
    """Return the times in `years` whose targets are stored and in the same calendar year.

    Args:
        times: (T,) the stored hours, ascending.
        years: calendar years of the split.
        horizons: lead times [h]; each must have its target.
        stride_hours: keep times whose index from the start of their year is a multiple of it.
        history_hours: hours before the initial time whose fields must be stored, also in the year before.

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
    """Samples of one split, numbered 0 to `len(table)` - 1 in order of time, then horizon.

    Attributes:
        times: (n,) usable initial times, ascending.
        horizons: lead times [h].
        paired: True if a sample is a (time, horizon) pair, False if it is a time with all horizons.
        history_hours: hours before the initial time whose fields are inputs.
    """

    times: Hours
    horizons: tuple[int, ...]
    paired: bool
    history_hours: tuple[int, ...] = ()

    def __len__(self) -> int:
        return self.times.size * (len(self.horizons) if self.paired else 1)

    @property
    def leads(self) -> int:
        """K, the number of lead times of a sample."""
        return 1 if self.paired else len(self.horizons)

    def lookup(self, samples: NDArray[np.int64]) -> tuple[Hours, NDArray[np.int64]]:
        """Return initial times (B,) and lead times (B, K) [h] of the sample numbers `samples` (B,)."""
        horizons = np.array(self.horizons, dtype=np.int64)
        if self.paired:
            time, horizon = np.divmod(samples, horizons.size)
            return self.times[time], horizons[horizon][:, None]
        return self.times[samples], np.broadcast_to(horizons, (samples.size, horizons.size))

    def hours(self, samples: NDArray[np.int64]) -> Hours:
        """Return the hours that the sample numbers `samples` are read from, ascending, each once."""
        init_times, leads = self.lookup(samples)
        earlier = -np.array(self.history_hours, dtype=np.int64)
        offsets = np.concatenate([leads, np.broadcast_to(earlier, (len(leads), earlier.size))], axis=1)
        return np.unique(np.concatenate([init_times, (init_times[:, None] + offsets * _HOUR).ravel()]))


def sample_table(config: RunConfig, times: Hours, split: Split) -> SampleTable:
    """Return the samples of a split from the stored hours.

    `model.lead_time` selects pairs or whole times for training. Validation and test always use whole times,
    so that each input is read once for all horizons.

    Raises:
        ValueError: no time of the split is usable.
    """
    data = config.data
    years, stride = {
        "train": (data.train_years, data.time_stride_hours),
        "validation": (data.validation_years, data.validation_stride_hours),
        "test": (data.test_years, data.test_stride_hours),
    }[split]
    usable = usable_times(times, years, data.horizons, stride, data.stored_before)
    if not usable.size:
        before = f" and fields {_listed(data.stored_before)} h before" if data.stored_before else ""
        raise ValueError(
            f"No time of `data.{split}_years` ({_listed(years)}) can be used: none in the store {data.store} "
            f"has targets {_listed(data.horizons)} h ahead in the same year{before}. Choose years in the "
            "store (`aqtopo data info` lists them), shorter horizons or a shorter history."
        )
    paired = split == "train" and config.model.lead_time == "encoder"
    return SampleTable(usable, data.horizons, paired, data.history_hours)


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def epoch_order(seed: int, epoch: int, samples: int) -> NDArray[np.int64]:
    """Return the order of an epoch, a permutation of 0 to `samples` - 1, equal for all numpy versions.

    numpy keeps the raw stream of PCG64 seeded by SeedSequence([seed, epoch]) in all versions, but the result
    of `permutation` only within one (NEP 19). So raw 64-bit keys are sorted, stably for equal keys (5e-10
    pairs expected among 138,720).
    """
    keys = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(samples)
    return np.argsort(keys, kind="stable").astype(np.int64)


def share(places: range, rank: int, world: int, micro_batch: int) -> NDArray[np.int64]:
    """Return the places of one rank's micro-batches of a step, (micro-steps, `micro_batch`).

    All ranks have the smallest number of micro-steps that contains all places; `PADDING` is at the end.
    """
    assert 0 <= rank < world
    micro_steps = math.ceil(len(places) / (world * micro_batch))
    padded = np.full(micro_steps * world * micro_batch, PADDING, dtype=np.int64)
    padded[: len(places)] = places
    return padded.reshape(micro_steps, world, micro_batch)[:, rank]


@dataclass(frozen=True)
class StepPlan:
    """Division of an epoch's samples into steps, at the configured world size.

    Attributes:
        samples: samples of an epoch.
        micro_batch: samples per rank and micro-step.
        accumulation: micro-steps per step.
        world: number of ranks.

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
        """Return the plan of a run with `samples` samples per epoch."""
        return cls(samples, config.micro_batch, config.accumulation, config.world_size)

    @property
    def _micro_step_samples(self) -> int:
        return self.micro_batch * self.world

    @property
    def train_batch(self) -> int:
        """Samples of a full step (G), constant for a run."""
        return self._micro_step_samples * self.accumulation

    @property
    def micro_steps_per_epoch(self) -> int:
        """Whole micro-steps of an epoch; the samples of an incomplete one are dropped."""
        return self.samples // self._micro_step_samples

    @property
    def all_micro_steps_per_epoch(self) -> int:
        """Micro-steps of an epoch with the incomplete one, as PyTorch counts with `drop_last=False`."""
        return math.ceil(self.samples / self._micro_step_samples)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer updates of an epoch; the last may have fewer micro-steps than the others."""
        return math.ceil(self.micro_steps_per_epoch / self.accumulation)

    def validation_steps(self, every: int) -> dict[int, int]:
        """Return the steps of an epoch with a validation: one every `every` micro-steps, at a step's end.

        Returns:
            The micro-step that is due, by the step of the epoch (from 1) after which to validate. If several
            are due in one step, only the last counts. Empty if an epoch has fewer than `every` micro-steps.
        """
        last = self.micro_steps_per_epoch
        due = range(every, last + 1, every)
        return {math.ceil(micro_step / self.accumulation): micro_step for micro_step in due}

    def step_places(self, step_in_epoch: int) -> range:
        """Return the places of a step of the epoch."""
        assert 0 <= step_in_epoch < self.steps_per_epoch
        used = self.micro_steps_per_epoch * self._micro_step_samples
        start = step_in_epoch * self.train_batch
        return range(start, min(start + self.train_batch, used))


def evaluation_share(samples: int, rank: int, world: int) -> NDArray[np.int64]:
    """Return the samples that one of `world` ranks evaluates; the numbers differ by at most one.

    They are consecutive: consecutive hours are in the same shard, and a daily mean needs all forecasts of a
    day on one rank.
    """
    assert 0 <= rank < world
    return np.arange(samples * rank // world, samples * (rank + 1) // world, dtype=np.int64)
