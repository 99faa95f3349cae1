"""From written files to a saved state with a name, in the background, while training goes on.

Every rank syncs and hashes its own files in a thread and leaves the hashes in a small file beside them; a
thread of rank 0 waits for everyone's and publishes. Ranks tell each other by files and not by collectives:
a thread's would have to come in the same order among the training's own on all ranks, and a process group
for it alone takes memory on every GPU, while the folder is shared anyway.

A process killed on the way leaves `<tag>.tmp`, which is not a saved state.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event, Lock
from typing import Any

from aqtopo.checkpoint.files import FileRecord, settle
from aqtopo.checkpoint.ranks import Ranks
from aqtopo.checkpoint.writing import fail_together

HASHES = "hashes-*.json*"
"""The files by which ranks tell rank 0 what they wrote."""

LONGEST_PAUSE_S = 1.0
"""Between two looks for the hashes of other ranks."""

Publish = Callable[[dict[str, FileRecord]], None]


class PendingCommit:
    """A state whose files are written and which is on its way to its name.

    Args:
        folder: where the files lie, still under a name that nobody takes for a saved state.
        own: the files that this rank wrote.
        publish: gives the folder its name; called on rank 0, in the background.
        ranks: all that wrote; this class calls their collectives in `finish` only.
    """

    def __init__(self, folder: Path, own: Sequence[Path], publish: Publish, ranks: Ranks) -> None:
        self._folder = folder
        self._ranks = ranks
        self._given_up = Event()
        self._publishing = Lock()
        executor = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._hashed = executor.submit(self._hash, own)
        self._published = executor.submit(self._publish, publish) if ranks.rank == 0 else None
        executor.shutdown(wait=False)

    @property
    def failed(self) -> bool:
        """Whether this rank's part in it has already failed; never waits."""
        parts = (self._hashed, self._published)
        return any(part is not None and part.done() and part.exception() is not None for part in parts)

    def finish(self) -> None:
        """Wait, all ranks together, until the state has its name.

        Raises:
            OSError: on all ranks: some rank could not write.
        """
        try:
            # First everyone's own files: rank 0 would wait for the hashes of a rank that failed.
            for future in (self._hashed, self._published):
                fail_together(self._folder, None if future is None else future.exception(), self._ranks)
        finally:
            self._given_up.set()

    def close(self, seconds: float) -> None:
        """Wait without the other ranks, who may be gone, and only so long; then leave it unfinished.

        Afterwards nothing is published any more: another run may be at work in the directory by then.
        """
        wait([future for future in (self._hashed, self._published) if future is not None], seconds)
        with self._publishing:  # what is being published now is waited for
            self._given_up.set()

    def _hash(self, own: Sequence[Path]) -> None:
        """Sync and hash this rank's files, and leave the hashes for rank 0."""
        records: dict[str, Any] = {}
        for path in own:
            record = settle(path, threads=1)  # training needs the cores
            records[path.name] = record.size, record.sha256
        target = self._hashes_of(self._ranks.rank)
        part = target.with_name(f"{target.name}.part")
        part.write_text(json.dumps(records))
        part.replace(target)

    def _publish(self, publish: Publish) -> None:
        if self._hashed.exception() is None:
            records = dict(self._everyones_records())
            with self._publishing:
                if self._given_up.is_set():
                    raise OSError("it was given up")
                for rank in range(self._ranks.size):
                    self._hashes_of(rank).unlink()
                publish(dict(sorted(records.items())))

    def _everyones_records(self) -> Iterator[tuple[str, FileRecord]]:
        pause = 0.01
        for rank in range(self._ranks.size):
            while not self._hashes_of(rank).is_file():
                if self._given_up.wait(pause):
                    raise OSError(f"rank {rank} did not finish its files")
                pause = min(2 * pause, LONGEST_PAUSE_S)
            found: Mapping[str, Any] = json.loads(self._hashes_of(rank).read_text())
            for name, (size, hashes) in found.items():
                yield name, FileRecord(size, tuple(hashes))

    def _hashes_of(self, rank: int) -> Path:
        return self._folder / f"hashes-{rank:05d}.json"
