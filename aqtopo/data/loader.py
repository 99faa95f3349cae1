"""Loaders of a run's micro-batches, in order, read ahead by loader processes.

A `TrainingLoader` yields one list of micro-batches a step, an `EvaluationLoader` all times and horizons of a
split. `aqtopo.data.samples` selects the samples; they do not depend on the number of workers. Loader
processes start once and wait between epochs and validations; each request tells them what to read.

If a micro-batch takes longer than `data.read_deadline_s`, an error names store, shard and time.
"""

import functools
import math
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from aqtopo.config import RunConfig
from aqtopo.data.batch import Batch, BatchReader
from aqtopo.data.read_check import check_hours
from aqtopo.data.samples import (
    PADDING,
    SampleTable,
    Split,
    StepPlan,
    epoch_order,
    evaluation_share,
    sample_table,
    share,
)
from aqtopo.data.schema import HOURS_PER_SHARD, Hours, raise_unreadable
from aqtopo.data.shards import Result, run_with_deadline
from aqtopo.data.store import Store
from aqtopo.data.workers import SlotPool, main_hidden, signals_blocked, worker_context, worker_setup
from aqtopo.refusal import UnreadableDataError

_MOST_READ_AHEAD = 8
"""Largest number of micro-batches that a worker reads ahead for a whole step, unless prefetch is larger."""

_MOST_HELD = 64
"""Largest number of micro-batches of a step that are in shared memory."""


@dataclass(frozen=True, eq=False)
class Request:
    """Request for a micro-batch: sample numbers (B,), 0 for padding, and their places (B,).

    `slot` is its slot of the pool; None allocates memory.
    """

    samples: NDArray[np.int64]
    places: NDArray[np.int64]
    slot: int | None = None


@dataclass(frozen=True)
class FilledSlot:
    """Micro-batch in a slot of the pool; only this record is sent between processes."""

    slot: int
    places: tuple[int, ...]
    times: Hours
    filled: int


WorkerResult = Batch | FilledSlot | ValueError


class MicroBatches(Dataset[WorkerResult]):
    """Dataset of micro-batches, indexed by request, for DataLoader."""

    def __init__(self, reader: BatchReader, table: SampleTable, pool: SlotPool | None) -> None:
        self._reader = reader
        self._table = table
        self._pool = pool

    def __getitem__(self, request: Request) -> WorkerResult:
        times, leads = self._table.lookup(request.samples)
        slot = request.slot
        into = None if slot is None or self._pool is None else self._pool.buffer(slot)
        try:
            batch = self._reader.batch(times, leads, request.places, into)
        except UnreadableDataError as error:
            return UnreadableDataError(str(error))  # raised by the trainer, without the worker's traceback
        except ValueError as error:
            return ValueError(str(error))
        return batch if slot is None else FilledSlot(slot, batch.places, batch.times, batch.filled)


class _Requests(Sampler[Request]):
    """Sampler of the requests of the next pass."""

    def __init__(self, pool: SlotPool) -> None:
        self.pending: Sequence[Request] = ()
        self._pool = pool

    def __iter__(self) -> Iterator[Request]:
        # All processes have ended the previous pass, so its reserved slots are unused.
        self._pool.reclaim()
        for request in self.pending:
            yield replace(request, slot=self._pool.reserve())

    def __len__(self) -> int:
        return len(self.pending)


class BatchLoader:
    """Loader of requested micro-batches, read ahead by `data.workers` processes (0: read in this process).

    There is only one pass at a time: a new pass ends the previous one.

    Args:
        store: the data.
        config: number of workers, start method, prefetch and deadline.
        table: the samples of the split.
        size: largest number of samples of a micro-batch.
        most: largest number of micro-batches of a pass, and of processes.
        held: number of micro-batches that the caller keeps at a time.

    Raises:
        ValueError: the store does not fit the run, a channel has no value or values in other units
            (`check_hours`), or there is too little shared memory.
    """

    def __init__(
        self, store: Store, config: RunConfig, table: SampleTable, size: int, most: int, held: int = 1
    ) -> None:
        data = config.data
        workers = min(data.workers, most)
        self._store, self._table = store, table
        self._deadline_s = data.read_deadline_s
        self._reader = BatchReader(store, config, watched=True)
        hours = table.hours(np.arange(len(table)))
        check_hours(store, self._reader.names, hours[store.holds(hours)])
        # A batch outside the pool keeps a file open, and a step of 1600 samples on a laptop would exceed the
        # limit of open files. So large steps are copied. With a GPU, pinning copies every batch.
        self._pin = workers > 0 and torch.cuda.is_available()
        self._copy = workers > 0 and held > _MOST_HELD and not self._pin
        self._workers: list[Any] = []
        step_ahead = min(math.ceil(config.accumulation / max(workers, 1)), _MOST_READ_AHEAD)
        ahead = max(data.prefetch, step_ahead)
        # The caller may keep the previous step while it collects the next one.
        held = 1 if self._copy or self._pin else 2 * held
        self._pool = self._new_pool(workers * ahead + held + 1, size) if workers else None
        self._micro_batches = MicroBatches(self._reader, table, self._pool)
        self._loader: DataLoader[WorkerResult] | None = None
        if self._pool is not None:
            self._requests = _Requests(self._pool)
            self._loader = DataLoader(
                self._micro_batches,
                batch_size=None,
                sampler=self._requests,
                collate_fn=_unchanged,
                num_workers=workers,
                multiprocessing_context=worker_context(data.worker_start),
                worker_init_fn=worker_setup(),
                prefetch_factor=ahead,
                persistent_workers=True,
                # Without it, DataLoader would draw from the global generator.
                generator=torch.Generator().manual_seed(0),
            )

    def deliver(self, requests: Sequence[Request]) -> Iterator[Batch]:
        """Yield the micro-batches of `requests`, in order.

        Raises:
            UnreadableDataError: a shard cannot be read, or a loader process was killed.
            ValueError: a value is a fill value or impossible.
            TimeoutError: a micro-batch took longer than `data.read_deadline_s`.
        """
        items = self._items(requests) if requests else iter(())
        for request in requests:
            result = self._guarded(request, functools.partial(next, items))
            if isinstance(result, ValueError):
                raise result
            yield self._own(result)

    def _own(self, result: Batch | FilledSlot) -> Batch:
        """Return the batch of a result, pinned, copied or in shared memory."""
        if isinstance(result, Batch):
            batch = result
        else:
            assert self._pool is not None
            buffer = self._pool.hand_over(result.slot)
            tensors = self._reader.tensors(len(result.places), self._table.leads, buffer)
            batch = Batch(**tensors, places=result.places, times=result.times, filled=result.filled)
        if self._pin:
            return batch.pin_memory()
        return batch.clone() if self._copy else batch

    def _new_pool(self, slots: int, size: int) -> SlotPool:
        slot_bytes = self._reader.size(size, self._table.leads)
        try:
            return SlotPool(slots, slot_bytes)
        except RuntimeError as error:
            raise ValueError(
                f"The loader processes need {slots * slot_bytes / 2**20:.0f} MiB of shared memory, and less "
                f"is free ({error}). Lower `data.workers` or `data.prefetch`, or set `data.workers` "
                "to 0, or enlarge /dev/shm."
            ) from error

    def _items(self, requests: Sequence[Request]) -> Iterator[WorkerResult]:
        if self._loader is None:
            return (self._micro_batches[request] for request in requests)
        self._requests.pending = requests
        loader, before = self._loader, set(multiprocessing.active_children())
        with signals_blocked(), main_hidden():
            # In a thread DataLoader sets no SIGCHLD handler, which would raise RuntimeError at any point of
            # the trainer, even in a step.
            items = self._guarded(requests[0], lambda: iter(loader))
        self._workers += set(multiprocessing.active_children()) - before
        return items

    def _guarded(self, request: Request, work: Callable[[], Result]) -> Result:
        """Call a function that waits for loader processes, with a deadline, and explain its errors.

        `request` is the micro-batch that it waits for.
        """
        try:
            return run_with_deadline(self._deadline_s, work)
        except TimeoutError:
            # Otherwise this process could not exit while a worker hangs in the file system.
            for process in self._workers:
                process.kill()
            raise TimeoutError(
                f"The data store {self._store.path} did not answer for {self._deadline_s} s: the micro-batch "
                f"of {self._described(request)} is still not read. Check whether the file system hangs. If "
                "it is only slow, raise `data.read_deadline_s`."
            ) from None
        except (RuntimeError, EOFError, ConnectionError, FileNotFoundError) as error:
            # DataLoader raises RuntimeError; mapping a dead process's memory raises the others.
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            raise_unreadable(
                self._store.path,
                f"could not be read further: a loader process ended unexpectedly ({error!r}) before it "
                f"had read the micro-batch of {self._described(request)}",
                "The usual cause is a lack of memory or of /dev/shm: lower `data.workers` or "
                "`data.prefetch`, or set `data.workers` to 0 to see its error.",
            )

    def _described(self, request: Request) -> str:
        """Return the hours of a micro-batch and their shards, for a message."""
        hours = self._table.hours(request.samples[request.places != PADDING])
        stored = hours[self._store.holds(hours)]
        shards = np.unique(self._store.locate(stored) // HOURS_PER_SHARD)
        files = ", ".join(f"fields/c/{shard}/0/0/0" for shard in shards)
        return f"{', '.join(map(str, stored))} (shards {files})"


class TrainingLoader:
    """Loader of one rank's training samples, for all epochs.

    Args:
        store: of the run, from `open_store`.
        config: of the run.
        rank: of this process, from 0.
        world: number of processes. It may differ from the configured one: a step then has the same samples on
            other ranks.

    Raises:
        ValueError: the store does not fit the run or gives too few samples.
    """

    def __init__(self, store: Store, config: RunConfig, rank: int, world: int) -> None:
        self._config, self._rank, self._world = config, rank, world
        self._table = sample_table(config, store.times, "train")
        self._plan = StepPlan.from_config(config, len(self._table))
        held = math.ceil(self._plan.train_batch / (world * config.micro_batch))
        most = self._plan.micro_steps_per_epoch
        self._batches = BatchLoader(store, config, self._table, config.micro_batch, most, held)

    def steps(self, epoch: int, first_step: int = 0) -> Iterator[list[Batch]]:
        """Yield the micro-batches of each step of an epoch; all ranks have equally many.

        Args:
            epoch: from 0; it sets the order of the samples.
            first_step: step within the epoch to begin with.

        Raises:
            ValueError: a shard cannot be read, when its step is due.
            TimeoutError: the file system does not answer.
        """
        order = epoch_order(self._config.training.seed, epoch, len(self._table))
        steps = [
            share(self._plan.step_places(step), self._rank, self._world, self._config.micro_batch)
            for step in range(first_step, self._plan.steps_per_epoch)
        ]
        requests = [
            Request(np.where(places != PADDING, order[places], 0), places)
            for step in steps
            for places in step
        ]
        batches = self._batches.deliver(requests)
        return (list(islice(batches, len(step))) for step in steps)


class EvaluationLoader:
    """Loader of one rank's times of a split with all K horizons; it can be iterated repeatedly.

    Each time is on exactly one rank. The last batch may be smaller. The `places` of a batch are the indices
    of its times in the split. `only` restricts the split to these times.

    Raises:
        ValueError: the store does not fit the run, or the split has no usable time.
    """

    def __init__(
        self,
        store: Store,
        config: RunConfig,
        split: Split,
        rank: int,
        world: int,
        batch: int,
        only: Hours | None = None,
    ) -> None:
        table = sample_table(config, store.times, split)
        taken = np.arange(len(table)) if only is None else np.flatnonzero(np.isin(table.times, only))
        samples = taken[evaluation_share(taken.size, rank, world)]
        cut = [samples[start : start + batch] for start in range(0, samples.size, batch)]
        self._requests = [Request(numbers, numbers) for numbers in cut]
        self._batches = BatchLoader(store, config, table, batch, len(cut))

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Batch]:
        return self._batches.deliver(self._requests)


def _unchanged(item: Any) -> Any:
    return item
