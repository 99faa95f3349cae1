"""Save of a training state: all ranks write into a temporary folder, one rename commits it.

    <tag>.tmp: shards (DeepSpeed) and weights -> [background] fsync and hash -> manifest -> rename to <tag>
               -> pointer -> pruning

Training waits for the first part only. In the background each rank flushes and hashes its own files in a
thread and writes the hashes to a small file; a thread of rank 0 waits for all of them and commits. The
threads exchange files instead of using collectives: collectives must run in the same order on all ranks,
and a second process group takes memory on every GPU.

A process killed before the rename leaves a `<tag>.tmp`, which the next start removes; after the rename the
state is complete.
"""

import json
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event, Lock
from types import TracebackType
from typing import Any, Self

from aqtopo.checkpoint.engine_state import describe_engine, module_weights, write_shards
from aqtopo.checkpoint.files import FileRecord, sync, sync_and_hash, write_tensors
from aqtopo.checkpoint.manifest import WEIGHTS_FILE, Manifest, RunFacts, write_manifest
from aqtopo.checkpoint.shards import SHARD_NAME, ShardedState
from aqtopo.checkpoint.tags import (
    NAME_PATTERN,
    Tag,
    how_to_continue,
    next_tag,
    prune,
    record_name,
    update_pointer,
    write_tag,
)
from aqtopo.config import CheckpointConfig
from aqtopo.distributed.process_group import RankGroup
from aqtopo.safe_files import UNFINISHED, remove

HASH_FILES = "hashes-*.json*"
"""Files with the hashes of each rank's files."""

LONGEST_POLL_S = 1.0
"""Longest time between two checks for the hashes of another rank [s]."""

ABORT_WAIT_S = 60.0
"""Longest wait for the pending commit after an error [s]."""

LISTED_RANKS = 4
"""Number of ranks whose errors a message lists."""

Publish = Callable[[dict[str, FileRecord]], None]


class Saver:
    """Saves the states of one run; the commit of the last one may be pending.

    The end of the context waits for the pending commit: without limit normally, at most `ABORT_WAIT_S` after
    an error. Rank 0 calls `on_commit` in the background after each commit.
    """

    def __init__(
        self,
        run_dir: Path,
        policy: CheckpointConfig,
        ranks: RankGroup,
        on_commit: Callable[[Tag], None] = lambda _: None,
    ) -> None:
        self._run_dir = run_dir
        self._on_commit = on_commit
        self._policy = policy
        self._ranks = ranks
        self._pending: PendingCommit | None = None

    def save(self, engine: Any, tag: Tag, facts: RunFacts) -> Tag:
        """Write the state of all ranks; `finish` or the next `save` waits for its commit.

        The engine must be at an accumulation boundary.

        Returns:
            The tag with its number and its final `take`, which makes the name unique.

        Raises:
            OSError: on all ranks: this state or the one before it could not be written.
        """
        self.finish()
        tag = self._with_unused_name(tag)
        temporary = self._temporary(tag)
        self._write(engine, tag, temporary)
        # Describe the engine now: training continues before the background thread commits.
        manifest = describe_engine(engine, tag.name, facts)
        self._pending = PendingCommit(
            temporary,
            list(_own_files(temporary, self._ranks.rank)),
            lambda records: self._publish(tag, manifest, records, temporary),
            self._ranks,
        )
        return tag

    @property
    def failed(self) -> bool:
        """True if this rank knows that the pending commit has failed; `finish` raises the reason."""
        return self._pending is not None and self._pending.failed

    def finish(self) -> None:
        """Wait on all ranks until the last saved state is committed.

        Raises:
            OSError: on all ranks: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.finish()

    def abandon(self) -> None:
        """Wait for the pending commit for at most `ABORT_WAIT_S`, without the other ranks."""
        if self._pending is not None:
            self._pending.close(ABORT_WAIT_S)

    def _with_unused_name(self, tag: Tag) -> Tag:
        """Return the tag with the number and the take that rank 0 finds in the run directory."""
        found = tag
        with errors_on_all_ranks(self._temporary(tag), self._ranks):
            if self._ranks.rank == 0:
                found = next_tag(tag, self._run_dir)
        take, number = json.loads(self._ranks.gather_texts(json.dumps([found.take, found.number]))[0])
        named = replace(tag, take=take, number=number)
        assert NAME_PATTERN.fullmatch(named.name), named.name
        return named

    def _temporary(self, tag: Tag) -> Path:
        return tag.folder(self._run_dir).with_name(tag.name + UNFINISHED)

    def _write(self, engine: Any, tag: Tag, temporary: Path) -> None:
        """Write this rank's files of the state, without fsync."""
        with errors_on_all_ranks(temporary, self._ranks):
            if self._ranks.rank == 0:
                remove(temporary)
                temporary.mkdir(parents=True)
        with errors_on_all_ranks(temporary, self._ranks):
            write_shards(engine, temporary)
            if self._ranks.rank == 0:
                write_tensors(temporary / WEIGHTS_FILE, module_weights(engine))
                write_tag(tag, self._run_dir, temporary)

    def _publish(self, tag: Tag, manifest: Manifest, records: dict[str, FileRecord], temporary: Path) -> None:
        """Commit by rename on rank 0; then update the pointer and prune (best effort)."""
        complete = manifest.model_copy(update={"files": records})
        ShardedState(temporary, complete)  # raises if a rank's shard is missing
        write_manifest(complete, temporary)
        record_name(tag, self._run_dir)
        temporary.rename(tag.folder(self._run_dir))
        sync(temporary.parent)
        try:
            update_pointer(tag, self._run_dir)
            self._on_commit(tag)
            prune(self._run_dir, self._policy)
        except OSError as error:
            warnings.warn(
                f"{tag.name} is saved, but updating the pointer or pruning failed: {error}", stacklevel=2
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.finish()
        else:
            self.abandon()


def _own_files(folder: Path, rank: int) -> Iterable[Path]:
    """Yield the files that this rank wrote: its shard, and on rank 0 all files that are not shards."""
    for path in sorted(folder.iterdir()):
        shard = SHARD_NAME.fullmatch(path.name)
        if (int(shard[1]) if shard else 0) == rank and not path.match(HASH_FILES):
            yield path


class PendingCommit:
    """Background commit of a state whose files are written to a temporary folder.

    `own` are the files that this rank wrote. Rank 0 calls `publish`, which renames the folder. Only `finish`
    uses collectives.
    """

    def __init__(self, folder: Path, own: Sequence[Path], publish: Publish, ranks: RankGroup) -> None:
        self._folder = folder
        self._ranks = ranks
        self._abandoned = Event()
        self._publishing = Lock()
        executor = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._hashed = executor.submit(self._hash, own)
        self._published = executor.submit(self._publish, publish) if ranks.rank == 0 else None
        executor.shutdown(wait=False)

    @property
    def failed(self) -> bool:
        """True if this rank's part has already failed; never waits."""
        parts = (self._hashed, self._published)
        return any(part is not None and part.done() and part.exception() is not None for part in parts)

    def finish(self) -> None:
        """Wait on all ranks until the state is committed.

        Raises:
            OSError: on all ranks: a rank could not write.
        """
        try:
            # The ranks' own files first, because rank 0 would wait for the hashes of a failed rank.
            for future in (self._hashed, self._published):
                raise_on_all_ranks(self._folder, None if future is None else future.exception(), self._ranks)
        finally:
            self._abandoned.set()

    def close(self, timeout_s: float) -> None:
        """Wait for at most `timeout_s` [s], without collectives; then abandon the commit.

        An abandoned commit never completes, because another run may use the directory by then.
        """
        wait([future for future in (self._hashed, self._published) if future is not None], timeout_s)
        with self._publishing:  # a commit in progress completes first
            self._abandoned.set()

    def _hash(self, own: Sequence[Path]) -> None:
        """Flush and hash this rank's files, and write the hashes to a file for rank 0."""
        records: dict[str, Any] = {}
        for path in own:
            record = sync_and_hash(path, threads=1)  # training needs the cores
            records[path.name] = record.size, record.sha256
        target = self._hash_file(self._ranks.rank)
        part = target.with_name(f"{target.name}.part")
        part.write_text(json.dumps(records), encoding="utf-8")
        part.replace(target)

    def _publish(self, publish: Publish) -> None:
        if self._hashed.exception() is None:
            records = dict(self._records_of_all_ranks())
            with self._publishing:
                if self._abandoned.is_set():
                    raise OSError("the commit was abandoned")
                for rank in range(self._ranks.size):
                    self._hash_file(rank).unlink()
                publish(dict(sorted(records.items())))

    def _records_of_all_ranks(self) -> Iterator[tuple[str, FileRecord]]:
        pause = 0.01
        for rank in range(self._ranks.size):
            while not self._hash_file(rank).is_file():
                if self._abandoned.wait(pause):
                    raise OSError(f"rank {rank} did not finish its files")
                pause = min(2 * pause, LONGEST_POLL_S)
            found: Mapping[str, Any] = json.loads(self._hash_file(rank).read_text(encoding="utf-8"))
            for name, (size, hashes) in found.items():
                yield name, FileRecord(size, tuple(hashes))

    def _hash_file(self, rank: int) -> Path:
        return self._folder / f"hashes-{rank:05d}.json"


def raise_on_all_ranks(temporary: Path, error: BaseException | None, ranks: RankGroup) -> None:
    """Raise the same error on all ranks if a rank could not write; remove the temporary folder.

    Raises:
        OSError: on all ranks: a rank failed.
    """
    texts = ranks.gather_texts("" if error is None else str(error) or type(error).__name__)
    problems = [f"rank {rank}: {text}" for rank, text in enumerate(texts) if text]
    if not problems:
        return
    if ranks.rank == 0:
        assert temporary.name.endswith(UNFINISHED), temporary
        shutil.rmtree(temporary, ignore_errors=True)  # frees the space on a full disk
    more = f"; and {len(problems) - LISTED_RANKS} more ranks" if len(problems) > LISTED_RANKS else ""
    state = temporary.with_name(temporary.stem)
    raise OSError(
        f"{state} could not be saved: {'; '.join(problems[:LISTED_RANKS])}{more}. "
        f"{how_to_continue(temporary.parent.parent)}"
    ) from error


@contextmanager
def errors_on_all_ranks(temporary: Path, ranks: RankGroup) -> Iterator[None]:
    """Raise a rank's write error on all ranks, at the end of the block; no rank skips a collective.

    Raises:
        OSError: on all ranks: a rank could not write.
    """
    failure = None
    try:
        yield
    except OSError as error:
        failure = error
    raise_on_all_ranks(temporary, failure, ranks)
