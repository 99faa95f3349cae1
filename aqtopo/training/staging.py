"""Has a run's data copied to every node before training, with one rank of each node copying."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace

from aqtopo.data.stage import Copied, NodeCopy
from aqtopo.data.store import Store
from aqtopo.distributed import process_group
from aqtopo.distributed.watchdog import Watchdog
from aqtopo.refusal import UnreadableDataError
from aqtopo.run_directory.run_log import RunLog
from aqtopo.training.prepare import Prepared

_KINDS: tuple[type[Exception], ...] = (UnreadableDataError, ValueError, OSError)
"""What a copy may fail with, the narrower first; the kind decides whether the job is requeued."""


@contextmanager
def staged(prepared: Prepared, watchdog: Watchdog, log: RunLog) -> Iterator[Store]:
    """The store, read from the copy on this node where `data.stage` asks for one; all ranks call it.

    Raises:
        ValueError: on all ranks: a node has no room, or a shard is damaged.
        OSError: on all ranks: a copy cannot be written, or the store did not answer in time.
    """
    store, config = prepared.store, prepared.config
    if config.data.stage is None:
        yield store
        return
    watchdog.enter("stage")
    copy: NodeCopy | None = None
    problem: Exception | None = None
    made: Copied | None = None
    try:
        copy = NodeCopy(store, config)
        if prepared.launch.local_rank == 0:
            log.say(f"data: copying to {copy.folder} on every node")
            made = copy.make()
    except (ValueError, OSError) as error:
        problem = error
    try:
        watchdog.enter("stage", "of all nodes")  # a rank that still copies is behind this one
        copies = _agree(problem, made)
        assert copy is not None
        if made is None:
            try:
                copy.join()
            except ValueError as error:
                problem = error
        _agree(problem, made)
        log.say(_described(copies))
        yield replace(store, copy=str(copy.folder))
    finally:
        if copy is not None:
            copy.leave()


def _agree(problem: Exception | None, made: Copied | None) -> list[Copied]:
    """Return the copies of all nodes.

    Raises:
        ValueError: a rank could not, for a reason that a user has to put right.
        UnreadableDataError: a rank could not, since a shard is damaged or the disk failed.
        OSError: a rank could not, for another.
    """
    said = {
        "problem": None if problem is None else str(problem),
        "kind": next((kind.__name__ for kind in _KINDS if isinstance(problem, kind)), ""),
        "made": None if made is None else asdict(made),
    }
    everyones = [json.loads(text) for text in process_group.gather_texts(json.dumps(said))]
    if problem is not None:
        raise problem
    for others in everyones:
        if others["problem"]:
            raise next(kind for kind in _KINDS if kind.__name__ == others["kind"])(others["problem"])
    return [Copied(**others["made"]) for others in everyones if others["made"]]


def _described(copies: list[Copied]) -> str:
    first, slowest = copies[0], max(copy.seconds for copy in copies)
    there = sum(copy.shards - copy.copied for copy in copies)
    return (
        f"data: {first.shards} shards ({first.total_bytes / 1e9:.2f} GB) are in {first.folder} on each of "
        f"{len(copies)} node(s) after {slowest:.1f} s; {sum(copy.copied for copy in copies)} copied, {there} "
        "were there; removed when the run ends"
    )
