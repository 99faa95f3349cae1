"""Node-local copy of the shards that a run reads, so that nodes do not read single hours from a shared disk.

    <data.stage>/aqtopo-<store digest>-<job id>-<random>/    the fields' metadata and shards, as in the store

Local rank 0 of each node copies to `<folder>.partial` (mode 700), compares every shard with the store's
checksum, renames the folder, and removes it when the run ends. The job's folder notes the path: slurm/job.sh
removes the copy of a run that was killed.
"""

import functools
import json
import os
import secrets
import shutil
import signal
import socket
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from aqtopo.config import RunConfig
from aqtopo.data.samples import sample_table
from aqtopo.data.schema import HOURS_PER_SHARD, raise_store_error
from aqtopo.data.shards import (
    DamagedShardError,
    checksum_of,
    read_with_deadline,
    shard_bytes,
    shard_path,
    stored_checksums,
)
from aqtopo.data.store import Store
from aqtopo.distributed import process_group
from aqtopo.distributed.watchdog import Watchdog
from aqtopo.refusal import UnreadableDataError
from aqtopo.run_directory.batch_job import BatchJob
from aqtopo.run_directory.run_log import RunLog
from aqtopo.training.prepare import Prepared

COPY_THREADS = 8
"""Shards copied in parallel: a parallel file system has a high latency for each request."""

_METADATA = ("zarr.json", "fields/zarr.json")
_KINDS: tuple[type[Exception], ...] = (UnreadableDataError, ValueError, OSError)
"""Classes of errors of a copy, subclasses first. They determine if the job is requeued."""


def needed_shards(store: Store, config: RunConfig) -> list[int]:
    """Return the numbers of the shards that training and validation read, ascending."""
    tables = [sample_table(config, store.times, split) for split in ("train", "validation")]
    hours = np.concatenate([table.hours(np.arange(len(table))) for table in tables])
    shards: list[int] = np.unique(store.locate(hours) // HOURS_PER_SHARD).tolist()
    return shards


def check_stage(store: Store, config: RunConfig) -> NDArray[np.uint64]:
    """Check that the store can be copied to this node; return its checksums. Nothing is written.

    Raises:
        ValueError: there is too little space, no such folder, no checksums, or a shard is missing.
        TimeoutError: the store does not answer.
    """
    assert config.data.stage is not None
    host, shards = socket.gethostname(), needed_shards(store, config)
    read = functools.partial(read_with_deadline, store.path, deadline_s=config.data.read_deadline_s)
    checksums = read("its checksums", lambda: stored_checksums(store.path))
    if checksums.size != -(-store.times.size // HOURS_PER_SHARD):
        raise_store_error(
            store.path,
            "has no checksums, so a copy of it cannot be verified",
            "Write it again with this version, which adds them, or set `data.stage` to null.",
        )
    if not Path(config.data.stage).is_dir():
        raise ValueError(f"There is no folder {config.data.stage} on {host}. Choose another `data.stage`.")
    needed = read("the size of its shards", lambda: sum(_size(store, shard) for shard in shards))
    free = shutil.disk_usage(config.data.stage).free
    if needed > free:
        raise ValueError(
            f"{config.data.stage} on {host} has {free} bytes free, and {len(shards)} shards of the data "
            f"store {store.path} need {needed} bytes there. Free some space, choose another folder for "
            "`data.stage`, or set it to null to read the store directly."
        )
    return checksums


def _size(store: Store, shard: int) -> int:
    first = shard * HOURS_PER_SHARD
    try:
        return shard_path(store.path, first).stat().st_size
    except FileNotFoundError:
        store.raise_damaged(first, DamagedShardError("is missing"))


def copy_shards(store: Store, config: RunConfig, folder: Path) -> None:
    """Copy the shards of a run to a new folder; remove everything if that fails.

    Raises:
        ValueError: as `check_stage`, or a shard is damaged.
        OSError: the copy cannot be written, or (TimeoutError) the store does not answer.
    """
    checksums = check_stage(store, config)
    read = functools.partial(read_with_deadline, store.path, deadline_s=config.data.read_deadline_s)
    partial = folder.with_name(f"{folder.name}.partial")

    def copy(shard: int) -> None:
        first = shard * HOURS_PER_SHARD
        target = shard_path(partial, first)
        target.parent.mkdir(parents=True)
        what = f"the shard {target.relative_to(partial)} of {store.times[first]}"
        try:
            read(what, lambda: _copy_shard(store, shard, target, int(checksums[shard])))
        except DamagedShardError as error:
            store.raise_damaged(first, error)

    metadata = read("its metadata", lambda: [Path(store.path, name).read_bytes() for name in _METADATA])
    try:
        partial.mkdir(mode=0o700)  # fails if the name exists, even as a link
        try:
            (partial / "fields").mkdir()
            for name, content in zip(_METADATA, metadata, strict=True):
                (partial / name).write_bytes(content)
            with ThreadPoolExecutor(COPY_THREADS) as threads:
                list(threads.map(copy, needed_shards(store, config)))
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except TimeoutError:
        raise
    except OSError as error:
        raise OSError(
            f"{partial} on {socket.gethostname()} cannot be written ({error}). Free some space, choose "
            "another folder for `data.stage`, or set it to null to read the store directly."
        ) from error


def _copy_shard(store: Store, shard: int, target: Path, checksum: int) -> None:
    with target.open("xb") as file:
        if checksum_of(_written(file, shard_bytes(store.path, shard))) != checksum:
            raise DamagedShardError("differs from its checksum: it was changed after it was written")


def _written(file: BinaryIO, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield each piece after writing it to a file."""
    for piece in pieces:
        file.write(piece)
        yield piece


@contextmanager
def staged(prepared: Prepared, job: BatchJob, watchdog: Watchdog, log: RunLog) -> Iterator[Store]:
    """Yield the store, read from this node's copy if `data.stage` names a folder; all ranks call it.

    Raises:
        ValueError: on all ranks: a node has too little space, or a shard is damaged.
        OSError: on all ranks: a copy cannot be written, or the store did not answer in time.
    """
    store, config = prepared.store, prepared.config
    if config.data.stage is None:
        yield store
        return
    watchdog.enter("stage")
    copies = prepared.launch.local_rank == 0
    name = f"aqtopo-{store.digest[:12]}-{job.facts.get('job', 'local')}-{secrets.token_hex(4)}"
    folder = Path(config.data.stage, process_group.gather_texts(name)[0])  # the name of rank 0 on all nodes

    def remove() -> None:
        for path in (folder, folder.with_name(f"{folder.name}.partial")):
            shutil.rmtree(path, ignore_errors=True)

    if copies:
        watchdog.on_abort(remove)
    # Until the trainer records SIGTERM, it must not end the process without the removal.
    default = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        _copy_on_every_node(prepared, folder, job, watchdog, log)
        yield replace(store, copy=str(folder))
        process_group.barrier()  # all ranks of the node have finished reading
    finally:
        signal.signal(signal.SIGTERM, default)
        if copies:
            remove()


def _copy_on_every_node(
    prepared: Prepared, folder: Path, job: BatchJob, watchdog: Watchdog, log: RunLog
) -> None:
    launch, began = prepared.launch, time.monotonic()
    problem: Exception | None = None
    try:
        if launch.is_main:
            job.note_copy(folder)
            log.say(f"data: copying to {folder} on every node")
        if launch.local_rank == 0:
            copy_shards(prepared.store, prepared.config, folder)
    except (ValueError, OSError) as error:
        problem = error
    watchdog.enter("stage", "of all nodes")  # a higher phase count than that of ranks that still copy
    _agree(problem)
    if not _is_own(folder):
        problem = ValueError(
            f"{folder} is missing on {socket.gethostname()} for rank {launch.rank}, but local rank 0 has "
            "copied the data to it. Choose a folder for `data.stage` that all ranks of a node share."
        )
    _agree(problem)
    if launch.is_main:
        sizes = [path.stat().st_size for path in folder.glob("fields/c/*/0/0/0")]
        log.say(
            f"data: {len(sizes)} shards ({sum(sizes) / 1e9:.2f} GB) copied to {folder} on every node in "
            f"{time.monotonic() - began:.1f} s; removed when the run ends"
        )


def _is_own(folder: Path) -> bool:
    """Return True for a folder, not a link, of this user."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()


def _agree(problem: Exception | None) -> None:
    """Raise on all ranks if any rank has a problem: the rank's own problem, or else the first one."""
    kind = next((kind.__name__ for kind in _KINDS if isinstance(problem, kind)), "")
    texts = process_group.gather_texts(json.dumps([kind, str(problem or "")]))
    if problem is not None:
        raise problem
    for kind_name, text in map(json.loads, texts):
        if kind_name:
            raise next(kind for kind in _KINDS if kind.__name__ == kind_name)(text)
