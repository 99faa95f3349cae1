"""Delivers a run's micro-batches, in order, read ahead by loader processes.

A `TrainingLoader` gives one list of micro-batches a step, an `EvaluationLoader` a split once, all horizons.
Which samples they hold is decided in `aqtopo.data.samples`, and is the same for any number of workers. Loader
processes are started once and wait between epochs and validations; what is to be read is sent to them.

Whatever happens to the data, the trainer gets its micro-batch, or an error that names store, shard and time:
a file system that does not answer is given `data.read_deadline_s`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

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
from aqtopo.data.schema import HOURS_PER_SHARD, refuse
from aqtopo.data.store import Store
from aqtopo.data.workers import Workers, within, worker_context, worker_setup

_MOST_READ_AHEAD = 8
"""Micro-batches that a worker reads ahead at most to have a whole step at hand; more is up to the user."""

_MOST_HELD = 64
"""Micro-batches of a step that may stay in the memory of the processes that read them."""


@dataclass(frozen=True, eq=False)
class Request:
    """A micro-batch to read: the numbers of its samples (B,), 0 for surplus, and their places (B,)."""

    samples: NDArray[np.int64]
    places: NDArray[np.int64]


@dataclass(frozen=True)
class ReadFailure:
    """A micro-batch that could not be read: its message travels, the worker's traceback does not."""

    message: str


class MicroBatches(Dataset[Batch | ReadFailure]):
    """Micro-batches by request, for DataLoader."""

    def __init__(self, reader: BatchReader, table: SampleTable) -> None:
        self._reader = reader
        self._table = table

    def __getitem__(self, request: Request) -> Batch | ReadFailure:
        times, leads = self._table.lookup(request.samples)
        try:
            return self._reader.batch(times, leads, request.places)
        except ValueError as error:
            return ReadFailure(str(error))


class _Requests(Sampler[Request]):
    """What the next pass is to deliver; the processes that read it know nothing of epochs."""

    def __init__(self) -> None:
        self.pending: Sequence[Request] = ()

    def __iter__(self) -> Iterator[Request]:
        return iter(self.pending)

    def __len__(self) -> int:
        return len(self.pending)


class BatchLoader:
    """Delivers micro-batches, read ahead by `data.workers` processes (0: read here, when asked for).

    One pass at a time: a new one ends the one before.

    Args:
        store: where they come from.
        config: workers, how they start, how far they read ahead, and how long they may take.
        table: the samples of the split.
        most: the most micro-batches of a pass; there are no more processes than that.
        held: how many micro-batches the user holds at a time.
    """

    def __init__(self, store: Store, config: RunConfig, table: SampleTable, most: int, held: int = 1) -> None:
        data = config.data
        workers = min(data.workers, most)
        self._store, self._table = store, table
        self._deadline_s = data.read_deadline_s
        self._micro_batches = MicroBatches(BatchReader(store, config), table)
        self._requests = _Requests()
        # A batch from another process keeps a file open: a laptop that replays a step of 1600 samples would
        # run out of them. Pinning, where there is a GPU, copies anyhow.
        self._copy = workers > 0 and held > _MOST_HELD and not torch.cuda.is_available()
        self._workers = Workers()
        self._loader: DataLoader[Batch | ReadFailure] | None = None
        if workers:
            step_ahead = min(math.ceil(config.accumulation / workers), _MOST_READ_AHEAD)
            self._loader = DataLoader(
                self._micro_batches,
                batch_size=None,
                sampler=self._requests,
                collate_fn=_unchanged,
                num_workers=workers,
                multiprocessing_context=worker_context(data.worker_start),
                worker_init_fn=worker_setup(),
                prefetch_factor=max(data.prefetch, step_ahead),
                persistent_workers=True,
                pin_memory=torch.cuda.is_available(),
                # Workers are seeded from here; the global generator, which initialises weights, stays.
                generator=torch.Generator().manual_seed(0),
            )

    def deliver(self, requests: Sequence[Request]) -> Iterator[Batch]:
        """The micro-batches of `requests`, in order.

        Raises:
            ValueError: a shard cannot be read, or a loader process was killed.
            TimeoutError: a micro-batch took longer than `data.read_deadline_s`.
        """
        items = self._items(requests) if requests else iter(())
        for request in requests:
            item = self._next(items, request)
            if isinstance(item, ReadFailure):
                raise ValueError(item.message)
            yield item.clone() if self._copy else item

    def _items(self, requests: Sequence[Request]) -> Iterator[Batch | ReadFailure]:
        if self._loader is None:
            return (self._micro_batches[request] for request in requests)
        self._requests.pending = requests
        with self._workers.started():
            return iter(self._loader)

    def _next(self, items: Iterator[Batch | ReadFailure], request: Request) -> Batch | ReadFailure:
        try:
            return within(self._deadline_s, lambda: next(items))
        except TimeoutError:
            # A process that hangs in the file system would keep this one from ending.
            self._workers.kill()
            self._refuse_stall(request)
        except (RuntimeError, EOFError, ConnectionError, FileNotFoundError) as error:
            # DataLoader says RuntimeError; what fetches a batch's memory from a dead process, the others.
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            refuse(
                self._store.path,
                f"could not be read further: a loader process ended unexpectedly ({error!r}) before the "
                f"micro-batch of {self._described(request)} was there",
                "Most often the machine ran out of memory or of /dev/shm: lower `data.workers` or "
                "`data.prefetch`, or set `data.workers` to 0 to see its error.",
            )

    def _refuse_stall(self, request: Request) -> NoReturn:
        raise TimeoutError(
            f"The data store {self._store.path} did not answer for {self._deadline_s} s: the micro-batch of "
            f"{self._described(request)} is still not read. See whether the file system hangs; if it is only "
            "slow, raise `data.read_deadline_s`."
        )

    def _described(self, request: Request) -> str:
        """The hours that a micro-batch needs and the shards they lie in."""
        real = request.places != SURPLUS
        starts, leads = self._table.lookup(request.samples[real])
        hours = np.unique(
            np.concatenate([starts, (starts[:, None] + leads.astype("timedelta64[h]")).ravel()])
        )
        stored = hours[np.isin(hours, self._store.times)]
        shards = np.unique(self._store.locate(stored) // HOURS_PER_SHARD)
        files = ", ".join(f"fields/c/{shard}/0/0/0" for shard in shards)
        return f"{', '.join(map(str, stored))} (shards {files})"


class TrainingLoader:
    """One rank's share of training, epoch after epoch.

    `world` may differ from the configured world size: the steps then hold the same samples in other shares.

    Raises:
        ValueError: the store does not fit the run or gives too few samples.
    """

    def __init__(self, store: Store, config: RunConfig, rank: int, world: int) -> None:
        self._config, self._rank, self._world = config, rank, world
        self._table = sample_table(config, store.times, "train")
        self._plan = StepPlan.from_config(config, len(self._table))
        held = math.ceil(self._plan.train_batch / (world * config.micro_batch))
        self._batches = BatchLoader(store, config, self._table, self._plan.micro_steps_per_epoch, held)

    def steps(self, epoch: int, first_step: int = 0) -> Iterator[list[Batch]]:
        """A list of micro-batches for every step of an epoch, from `first_step` on; every rank gets as many.

        Raises:
            ValueError: a shard cannot be read (when its turn comes).
            TimeoutError: the file system does not answer.
        """
        order = epoch_order(self._config.training.seed, epoch, len(self._table))
        micro_batch = self._config.micro_batch
        shares = [
            share(self._plan.step_places(step), self._rank, self._world, micro_batch)
            for step in range(first_step, self._plan.steps_per_epoch)
        ]
        places = [
            np.array([SURPLUS if place is None else place for place in micro_batch], dtype=np.int64)
            for step in shares
            for micro_batch in step
        ]
        requests = [Request(np.where(place != SURPLUS, order[place], 0), place) for place in places]
        batches = self._batches.deliver(requests)
        return (list(islice(batches, len(step))) for step in shares)


def training_steps(
    store: Store, config: RunConfig, epoch: int, first_step: int, rank: int, world: int
) -> Iterator[list[Batch]]:
    """One epoch of a `TrainingLoader`."""
    return TrainingLoader(store, config, rank, world).steps(epoch, first_step)


class EvaluationLoader:
    """One rank's share of a split, to iterate over as often as it is evaluated.

    All times of the split with all horizons (K = their number), each time on exactly one rank; the last batch
    may be smaller. `places` number the split's times.

    Raises:
        ValueError: the store does not fit the run, or the split has no usable time.
    """

    def __init__(
        self, store: Store, config: RunConfig, split: Split, rank: int, world: int, batch: int
    ) -> None:
        table = sample_table(config, store.times, split)
        samples = evaluation_share(len(table), rank, world)
        cut = [samples[start : start + batch] for start in range(0, samples.size, batch)]
        self._requests = [Request(numbers, numbers) for numbers in cut]
        self._batches = BatchLoader(store, config, table, len(cut))

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Batch]:
        return self._batches.deliver(self._requests)


def evaluation_batches(
    store: Store, config: RunConfig, split: Split, rank: int, world: int, batch: int
) -> Iterator[Batch]:
    """One pass over an `EvaluationLoader`."""
    return iter(EvaluationLoader(store, config, split, rank, world, batch))


def _unchanged(item: Any) -> Any:
    return item
