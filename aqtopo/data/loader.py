"""Delivers a run's micro-batches, in order, read ahead by loader processes.

`training_steps` yields one list of micro-batches a step; `evaluation_batches` yields a split once, all
horizons. Which samples they hold is decided in `aqtopo.data.samples`, and is the same for any number of
workers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from aqtopo.config import RunConfig
from aqtopo.data.batch import SURPLUS, Batch, BatchReader
from aqtopo.data.samples import (
    SampleTable,
    Split,
    StepPlan,
    epoch_order,
    evaluation_share,
    sample_table,
    share,
)
from aqtopo.data.store import Store
from aqtopo.data.workers import signals_held, worker_context, worker_setup


@dataclass(frozen=True)
class ReadFailure:
    """A micro-batch that could not be read: its message travels, the worker's traceback does not."""

    message: str


class MicroBatches(Dataset[Batch | ReadFailure]):
    """Micro-batches by number, for DataLoader.

    Args:
        reader: reads them.
        table: the samples of the split.
        samples: for each micro-batch the numbers (B,) of its samples, 0 for surplus.
        places: for each micro-batch the places (B,), `SURPLUS` for samples of weight 0.
    """

    def __init__(
        self,
        reader: BatchReader,
        table: SampleTable,
        samples: list[NDArray[np.int64]],
        places: list[NDArray[np.int64]],
    ) -> None:
        self._reader = reader
        self._table = table
        self._samples = samples
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> Batch | ReadFailure:
        times, leads = self._table.lookup(self._samples[number])
        try:
            return self._reader.batch(times, leads, self._places[number])
        except ValueError as error:
            return ReadFailure(str(error))


def training_steps(
    store: Store, config: RunConfig, epoch: int, first_step: int, rank: int, world: int
) -> Iterator[list[Batch]]:
    """One rank's share of an epoch's steps, from `first_step` on: a list of micro-batches a step.

    Every rank gets equally many micro-batches a step. `world` may differ from the configured world size: the
    steps then hold the same samples in other shares.

    Raises:
        ValueError: the store does not fit the run or gives too few samples (at once), or a shard cannot be
            read (when its turn comes).
    """
    reader = BatchReader(store, config)
    table = sample_table(config, store.times, "train")
    plan = StepPlan.from_config(config, len(table))
    order = epoch_order(config.training.seed, epoch, len(table))
    shares = [
        share(plan.step_places(step), rank, world, config.micro_batch)
        for step in range(first_step, plan.steps_per_epoch)
    ]
    places = [
        np.array([SURPLUS if place is None else place for place in micro_batch], dtype=np.int64)
        for step in shares
        for micro_batch in step
    ]
    samples = [np.where(place != SURPLUS, order[place], 0) for place in places]
    batches = iter(BatchLoader(MicroBatches(reader, table, samples, places), config))
    return (list(islice(batches, len(step))) for step in shares)


def evaluation_loader(
    store: Store, config: RunConfig, split: Split, rank: int, world: int, batch: int
) -> "BatchLoader":
    """One rank's share of a split, to iterate over as often as it is evaluated; processes stay in between.

    All times of the split with all horizons (K = their number), each time on exactly one rank; the last batch
    may be smaller. `places` number the split's times.

    Raises:
        ValueError: the store does not fit the run, or the split has no usable time.
    """
    reader = BatchReader(store, config)
    table = sample_table(config, store.times, split)
    samples = evaluation_share(len(table), rank, world)
    cut = [samples[start : start + batch] for start in range(0, samples.size, batch)]
    return BatchLoader(MicroBatches(reader, table, cut, cut), config, keep_workers=True)


def evaluation_batches(
    store: Store, config: RunConfig, split: Split, rank: int, world: int, batch: int
) -> Iterator[Batch]:
    """One pass over `evaluation_loader`."""
    return iter(evaluation_loader(store, config, split, rank, world, batch))


class BatchLoader:
    """Iterates over micro-batches, read ahead by `data.workers` processes (0: read here, when asked for).

    Args:
        micro_batches: what to deliver, in this order.
        config: workers, how they start, and how far they read ahead.
        keep_workers: let the processes wait for the next pass; one pass at a time, then.
    """

    def __init__(self, micro_batches: MicroBatches, config: RunConfig, keep_workers: bool = False) -> None:
        data = config.data
        workers = min(data.workers, len(micro_batches))
        self._copy = workers > 0 and not torch.cuda.is_available()
        self._loader: DataLoader[Batch | ReadFailure] = DataLoader(
            micro_batches,
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=workers,
            multiprocessing_context=worker_context(data.worker_start) if workers else None,
            worker_init_fn=worker_setup() if workers else None,
            prefetch_factor=data.prefetch if workers else None,
            persistent_workers=keep_workers and workers > 0,
            pin_memory=torch.cuda.is_available(),
            # Workers are seeded from here; the global generator, which initialises weights, stays untouched.
            generator=torch.Generator().manual_seed(0),
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        with signals_held():
            items = iter(self._loader)
        while (item := _next(items)) is not None:
            if isinstance(item, ReadFailure):
                raise ValueError(item.message)
            # A batch from another process keeps five file descriptors open: a laptop that replays a step of
            # 1600 samples would run out of them. Pinning, where there is a GPU, copies as well.
            yield item.clone() if self._copy else item


def _unchanged(item: Any) -> Any:
    return item


def _next(items: Iterator[Batch | ReadFailure]) -> Batch | ReadFailure | None:
    try:
        return next(items, None)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ValueError(
            f"A loader process ended unexpectedly ({error}). Most often the machine ran out of memory or of "
            "/dev/shm: lower `data.workers` or `data.prefetch`, or set `data.workers` to 0 to see its error."
        ) from error
