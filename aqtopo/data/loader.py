"""Loaders of a run's micro-batches, in order, read ahead by loader processes.

A `TrainingLoader` yields one list of micro-batches per step; an `EvaluationLoader` yields one split with all
horizons.
`aqtopo.data.samples` chooses the samples; the choice does not depend on the number of workers. Loader
processes start once and wait between epochs and validations for requests.

The trainer gets its micro-batch, or an error that names store, shard and time. A file system that does not
answer within `data.read_deadline_s` is such an error.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from aqtopo.config import RunConfig
from aqtopo.data.batch import PADDING, Batch, BatchReader, Labels
from aqtopo.data.samples import (
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
from aqtopo.data.workers import Ring, Workers, worker_context, worker_setup
from aqtopo.refusal import UnreadableDataError

_MOST_READ_AHEAD = 8
"""Micro-batches that a worker reads ahead at most to have a whole step at hand; more is up to the user."""

_MOST_HELD = 64
"""Micro-batches of a step that may stay in the memory of the processes that read them."""


@dataclass(frozen=True, eq=False)
class Request:
    """A micro-batch to read: the numbers of its samples (B,), 0 for padding, and their places (B,).

    `slot` is where in the ring it goes; without one it comes in memory of its own.
    """

    samples: NDArray[np.int64]
    places: NDArray[np.int64]
    slot: int | None = None


@dataclass(frozen=True)
class Filled:
    """A micro-batch that lies in a slot of the ring: only what is said of it travels."""

    slot: int
    leads: int
    labels: Labels


@dataclass(frozen=True)
class ReadFailure:
    """A micro-batch that could not be read: its message travels, the worker's traceback does not."""

    message: str


Answer = Batch | Filled | ReadFailure


class MicroBatches(Dataset[Answer]):
    """Micro-batches by request, for DataLoader."""

    def __init__(self, reader: BatchReader, table: SampleTable, ring: Ring | None) -> None:
        self._reader = reader
        self._table = table
        self._ring = ring

    def __getitem__(self, request: Request) -> Answer:
        times, leads = self._table.lookup(request.samples)
        slot = request.slot
        into = None if slot is None or self._ring is None else self._ring.block(slot)
        try:
            batch = self._reader.batch(times, leads, request.places, into)
        except ValueError as error:
            return ReadFailure(str(error))
        return batch if slot is None else Filled(slot, leads.shape[1], batch.labels)


class _Requests(Sampler[Request]):
    """Requests of the next pass, for loader processes that do not know epochs."""

    def __init__(self, ring: Ring | None) -> None:
        self.pending: Sequence[Request] = ()
        self._ring = ring

    def __iter__(self) -> Iterator[Request]:
        if self._ring is None:
            yield from self.pending
            return
        # Begun when every process has left the pass before, so what was taken for that one is free.
        self._ring.reclaim()
        for request in self.pending:
            yield replace(request, slot=self._ring.take())

    def __len__(self) -> int:
        return len(self.pending)


class BatchLoader:
    """Delivers micro-batches, read ahead by `data.workers` processes (0: read here, when asked for).

    One pass at a time: a new one ends the one before.

    Args:
        store: where they come from.
        config: workers, how they start, how far they read ahead, and how long they may take.
        table: the samples of the split.
        size: the most samples of a micro-batch.
        most: the most micro-batches of a pass; there are no more processes than that.
        held: how many micro-batches the user holds at a time.

    Raises:
        ValueError: the store does not fit the run, or there is too little shared memory.
    """

    def __init__(
        self, store: Store, config: RunConfig, table: SampleTable, size: int, most: int, held: int = 1
    ) -> None:
        data = config.data
        workers = min(data.workers, most)
        self._store, self._table = store, table
        self._deadline_s = data.read_deadline_s
        self._reader = BatchReader(store, config, watched=True)
        # A batch beyond the ring keeps a file open: a laptop that replays a step of 1600 samples would run
        # out of them. So many are copied. Pinning, where there is a GPU, copies anyhow.
        self._pin = workers > 0 and torch.cuda.is_available()
        self._copy = workers > 0 and held > _MOST_HELD and not self._pin
        self._workers = Workers()
        step_ahead = min(math.ceil(config.accumulation / max(workers, 1)), _MOST_READ_AHEAD)
        ahead = max(data.prefetch, step_ahead)
        # While one step is collected, its user may still hold the one before.
        held = 1 if self._copy or self._pin else 2 * held
        self._ring = self._new_ring(workers * ahead + held + 1, size) if workers else None
        self._requests = _Requests(self._ring)
        self._micro_batches = MicroBatches(self._reader, table, self._ring)
        self._loader = self._data_loader(workers, ahead, data.worker_start) if workers else None

    def _data_loader(
        self, workers: int, ahead: int, start: Literal["forkserver", "spawn"]
    ) -> DataLoader[Answer]:
        return DataLoader(
            self._micro_batches,
            batch_size=None,
            sampler=self._requests,
            collate_fn=_unchanged,
            num_workers=workers,
            multiprocessing_context=worker_context(start),
            worker_init_fn=worker_setup(),
            prefetch_factor=ahead,
            persistent_workers=True,
            # Workers are seeded from here; the global generator, which initialises weights, stays.
            generator=torch.Generator().manual_seed(0),
        )

    def deliver(self, requests: Sequence[Request]) -> Iterator[Batch]:
        """The micro-batches of `requests`, in order.

        Raises:
            UnreadableDataError: a shard cannot be read, or a loader process was killed.
            TimeoutError: a micro-batch took longer than `data.read_deadline_s`.
        """
        items = self._items(requests) if requests else iter(())
        for request in requests:
            answer = self._answered(request, functools.partial(next, items))
            if isinstance(answer, ReadFailure):
                raise UnreadableDataError(answer.message)
            yield self._own(answer)

    def _own(self, answer: Batch | Filled) -> Batch:
        """The batch of an answer, in the memory where the user keeps it."""
        if isinstance(answer, Batch):
            batch = answer
        else:
            assert self._ring is not None
            samples, block = len(answer.labels.places), self._ring.lend(answer.slot)
            batch = self._reader.labelled(samples, answer.leads, block, answer.labels)
        if self._pin:
            return batch.pin_memory()
        return batch.clone() if self._copy else batch

    def _new_ring(self, slots: int, size: int) -> Ring:
        leads = self._table.lookup(np.zeros(1, dtype=np.int64))[1].shape[1]
        slot_bytes = self._reader.size(size, leads)
        try:
            return Ring(slots, slot_bytes)
        except RuntimeError as error:
            raise ValueError(
                f"The loader processes need {slots * slot_bytes / 2**20:.0f} MiB of shared memory, and there "
                f"is not so much ({error}). Lower `data.workers` or `data.prefetch`, or set `data.workers` "
                "to 0, or give the job more of /dev/shm."
            ) from error

    def _items(self, requests: Sequence[Request]) -> Iterator[Answer]:
        if self._loader is None:
            return (self._micro_batches[request] for request in requests)
        self._requests.pending = requests
        loader = self._loader
        with self._workers.started():
            # In a thread DataLoader leaves SIGCHLD alone. Its handler would raise RuntimeError wherever the
            # trainer is just then, in the middle of a step too.
            return self._answered(requests[0], lambda: iter(loader))

    def _answered(self, request: Request, work: Callable[[], Result]) -> Result:
        """Return the result of `work`, which waits for loader processes, or raise the error of `request`."""
        try:
            return run_with_deadline(self._deadline_s, work)
        except TimeoutError:
            # A process that hangs in the file system would keep this one from ending.
            self._workers.kill()
            self._refuse_stall(request)
        except (RuntimeError, EOFError, ConnectionError, FileNotFoundError) as error:
            # DataLoader says RuntimeError; what fetches a batch's memory from a dead process, the others.
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            raise_unreadable(
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
        real = request.places != PADDING
        starts, leads = self._table.lookup(request.samples[real])
        hours = np.unique(
            np.concatenate([starts, (starts[:, None] + leads.astype("timedelta64[h]")).ravel()])
        )
        stored = hours[self._store.holds(hours)]
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
        most = self._plan.micro_steps_per_epoch
        self._batches = BatchLoader(store, config, self._table, config.micro_batch, most, held)

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
            np.array([PADDING if place is None else place for place in micro_batch], dtype=np.int64)
            for step in shares
            for micro_batch in step
        ]
        requests = [Request(np.where(place != PADDING, order[place], 0), place) for place in places]
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
    may be smaller. `places` number the split's times. Where `only` is given, just those of its times are
    taken.

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
