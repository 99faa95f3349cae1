"""Copies the shards of a run into a node's own memory or disk, where no other node slows their reading.

    <data.stage>/aqtopo-<user id>/<key>/    the fields' metadata and shards, as in the store

The key is made of the store's digest, the shards and their checksums: equal names hold equal bytes. A folder
is held by locks on itself (`flock`), which the kernel lets go however a process ends: alone by who copies
into it or removes it, together by all ranks that read it. Such a lock also keeps systemd-tmpfiles away.

* A shard is copied aside, compared with its checksum and renamed; what is already there is compared as well.
  So a copy that was killed is completed by the next run, and never taken for whole.
* The last rank that leaves removes the folder. What a killed run left stays until a run of the same data
  takes it over, or one of other data removes it.
"""

import fcntl
import hashlib
import os
import shutil
import socket
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray

from aqtopo.config import RunConfig
from aqtopo.data.samples import Split, sample_table
from aqtopo.data.schema import HOURS_PER_SHARD, raise_store_error
from aqtopo.data.shards import (
    DamagedShardError,
    checksum_of,
    kept_checksums,
    read_with_deadline,
    shard_bytes,
    shard_checksum,
    shard_path,
)
from aqtopo.data.store import Store

COPY_THREADS = 8
"""Shards copied at once: a parallel file system answers many requests, one after the other slowly."""

_POLL_S = 0.2
_LOOKS = 3
"""How often a copy in use is found damaged before that counts: its maker may have been killed just then."""

_METADATA = ("zarr.json", "fields/zarr.json")
_SPLITS: tuple[Split, ...] = ("train", "validation")


@dataclass(frozen=True)
class Copied:
    """Result of staging.

    Attributes:
        folder: where it lies.
        shards: how many it holds.
        total_bytes: their size.
        copied: how many of them were copied now; the others were there.
        seconds: how long that took.
    """

    folder: str
    shards: int
    total_bytes: int
    copied: int
    seconds: float


def needed_shards(store: Store, config: RunConfig) -> NDArray[np.int64]:
    """The numbers of the shards that training and validation read, ascending."""
    hours = []
    for split in _SPLITS:
        table = sample_table(config, store.times, split)
        starts, leads = table.lookup(np.arange(len(table)))
        hours += [starts, (starts[:, None] + leads.astype("timedelta64[h]")).ravel()]
    return np.unique(store.locate(np.unique(np.concatenate(hours))) // HOURS_PER_SHARD)


class NodeCopy:
    """The copy of some shards of a store on this node; one rank of the node makes it, then the others join.

    Args:
        store: where they come from.
        config: which shards, where to, and how long a shard may take.

    Raises:
        ValueError: the folder is unfit, or the store has no checksums.
        TimeoutError: the store does not answer.
    """

    def __init__(self, store: Store, config: RunConfig) -> None:
        assert config.data.stage is not None
        self._store, self._stage = store, Path(config.data.stage)
        self._deadline_s = config.data.read_deadline_s
        self._shards: list[int] = needed_shards(store, config).tolist()
        kept = read_with_deadline(
            store.path, "its checksums", lambda: kept_checksums(store.path), self._deadline_s
        )
        if kept.size != -(-store.times.size // HOURS_PER_SHARD):
            raise_store_error(
                store.path,
                "has no checksums, so a copy of it could not be verified",
                "Write it anew with this version, which keeps them, or set `data.stage` to null.",
            )
        self._checksums = {shard: int(kept[shard]) for shard in self._shards}
        key = hashlib.sha256(store.digest.encode())
        key.update(np.array([self._shards, [*self._checksums.values()]], dtype=np.uint64).tobytes())
        self._root = self._stage / f"aqtopo-{os.getuid()}"
        self.folder = self._root / key.hexdigest()[:16]
        self._held: int | None = None

    def make(self) -> Copied:
        """Have the whole copy on this node, whoever makes it, and hold it.

        Raises:
            ValueError: there is no room, or a shard of the store is damaged or gone.
            OSError: the copy cannot be written, or (TimeoutError) the store does not answer.
        """
        began = time.monotonic()
        self._claim_root()
        looks = 0
        while True:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            if (held := _lock(self.folder, fcntl.LOCK_EX)) is not None:
                copied = self._complete_alone(held)
                if _hold(held, self.folder, fcntl.LOCK_SH):
                    return self._keep(held, copied, began)
            elif (held := _lock(self.folder, fcntl.LOCK_SH)) is not None:
                # A short look first: as long as two runs look, neither can have the folder alone.
                absent = [shard for shard in self._shards if not _copied(self.folder, shard).exists()]
                lacking, looks = absent or self._lacking(), looks + 1
                if not lacking:
                    return self._keep(held, 0, began)
                os.close(held)
                if looks == _LOOKS:
                    self._refuse_damaged(lacking[0])
            time.sleep(_POLL_S)  # another run is copying or removing

    def _refuse_damaged(self, shard: int) -> NoReturn:
        name = _copied(self.folder, shard).relative_to(self.folder)
        raise_store_error(
            self._store.path,
            f"has a copy {self.folder} on {socket.gethostname()} that another run uses, and whose shard "
            f"{name} is damaged or gone",
            "End that run, or choose another folder for `data.stage`.",
        )

    def _keep(self, held: int, copied: int, began: float) -> Copied:
        self._held = held
        size = sum(_copied(self.folder, shard).stat().st_size for shard in self._shards)
        return Copied(str(self.folder), len(self._shards), size, copied, time.monotonic() - began)

    def demand_room(self) -> None:
        """See whether `make` would have room, without making or removing anything.

        What is there already is not read, so a damaged shard, which is copied again in its place, counts as
        there; copies that nobody holds count as room, since `make` removes them.

        Raises:
            ValueError: there is no room, no such folder, or a shard of the store is gone.
            TimeoutError: the store does not answer.
        """
        self._demand_stage()
        unheld = 0
        if os.path.lexists(self._root):
            self._check_root()
            unheld = sum(_unheld_bytes(other) for other in self._root.iterdir() if other != self.folder)
        absent = [shard for shard in self._shards if not _copied(self.folder, shard).exists()]
        self._check_room(absent, shutil.disk_usage(self._stage).free + unheld)

    def join(self) -> None:
        """Hold the copy that another rank of this node has made and still holds."""
        self._held = _lock(self.folder, fcntl.LOCK_SH)
        if self._held is None:
            raise ValueError(
                f"{socket.gethostname()}: {self.folder} is not there for this rank, though another rank of "
                "the node has copied the data to it. Choose a folder for `data.stage` that all ranks of a "
                "node share."
            )

    def leave(self) -> None:
        """Let go of the copy, and remove it if no other rank holds it."""
        if self._held is None:
            return
        os.close(self._held)
        self._held = None
        _remove_unheld(self.folder)

    def _demand_stage(self) -> None:
        if not self._stage.is_dir():
            raise ValueError(
                f"There is no folder {self._stage} on {socket.gethostname()}. Choose another `data.stage`."
            )

    def _claim_root(self) -> None:
        """Make the folder of this user's copies, which nobody else may write to."""
        self._demand_stage()
        try:
            self._root.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"{self._root} on {socket.gethostname()} cannot be made ({error}). Choose another folder for "
                "`data.stage`."
            ) from error
        self._check_root()

    def _check_root(self) -> None:
        found = self._root.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise ValueError(
                f"{self._root} on {socket.gethostname()} is not a folder that only this user may write to. "
                "Remove it, or choose another folder for `data.stage`."
            )

    def _complete_alone(self, held: int) -> int:
        """Copy what is lacking, holding the folder alone; how many shards. Nothing stays if that fails."""
        try:
            for other in self._root.iterdir():
                if other != self.folder:
                    _remove_unheld(other)
            for leftover in self.folder.glob("fields/c/*/0/0/*.tmp"):
                leftover.unlink()
            lacking = self._lacking()
            self._check_room(lacking, shutil.disk_usage(self._stage).free)
            read_with_deadline(self._store.path, "its metadata", self._copy_metadata, self._deadline_s)
            with ThreadPoolExecutor(COPY_THREADS) as threads:
                list(threads.map(self._copy, lacking))
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            os.close(held)
            raise
        return len(lacking)

    def _lacking(self) -> list[int]:
        """The shards that are not there or not whole, all bytes read."""

        def whole(shard: int) -> bool:
            try:
                return shard_checksum(self.folder, shard) == self._checksums[shard]
            except DamagedShardError:
                return False

        with ThreadPoolExecutor(COPY_THREADS) as threads:
            wholes = list(threads.map(whole, self._shards))
        return [shard for shard, is_whole in zip(self._shards, wholes, strict=True) if not is_whole]

    def _copy_metadata(self) -> None:
        for name in _METADATA:
            target = self.folder / name
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(Path(self._store.path, name).read_bytes())

    def _check_room(self, shards: Sequence[int], free: int) -> None:
        needed = read_with_deadline(
            self._store.path,
            "the size of its shards",
            lambda: sum(self._size(shard) for shard in shards),
            self._deadline_s,
        )
        if needed > free:
            raise ValueError(
                f"{self._stage} on {socket.gethostname()} has {free} bytes free, and {len(shards)} shards of "
                f"the data store {self._store.path} need {needed} bytes there. Make room, choose another "
                "folder for `data.stage`, or set it to null to read the store where it lies."
            )

    def _size(self, shard: int) -> int:
        try:
            return shard_path(self._store.path, shard * HOURS_PER_SHARD).stat().st_size
        except FileNotFoundError:
            self._store.lose(shard * HOURS_PER_SHARD, DamagedShardError("is gone"))

    def _copy(self, shard: int) -> None:
        first = shard * HOURS_PER_SHARD
        name = shard_path(self._store.path, first).relative_to(self._store.path)
        try:
            read_with_deadline(
                self._store.path,
                f"the shard {name} of {self._store.times[first]}",
                lambda: self._copy_now(shard),
                self._deadline_s,
            )
        except DamagedShardError as error:
            self._store.lose(first, error)

    def _copy_now(self, shard: int) -> None:
        """Copy a shard under another name, and give it its own if its bytes are those that were written."""
        target = _copied(self.folder, shard)
        aside = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        try:
            aside.parent.mkdir(parents=True, exist_ok=True)
            with aside.open("wb") as written:
                checksum = checksum_of(_written(written, shard_bytes(self._store.path, shard)))
            if checksum != self._checksums[shard]:
                raise DamagedShardError("differs from its checksum: it was changed after it was written")
            # Not synced: after a crash of the node the bytes are compared again before they are used.
            aside.replace(target)
        except OSError as error:  # of the copy: what is wrong with the store is a DamagedShardError
            raise OSError(
                f"{self.folder} on {socket.gethostname()} cannot be written ({error}). Make room there, "
                "choose another folder for `data.stage`, or set it to null to read the store where it lies."
            ) from error


def _written(file: BinaryIO, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The pieces, each written to a file as it passes."""
    for piece in pieces:
        file.write(piece)
        yield piece


def _copied(folder: Path, shard: int) -> Path:
    return shard_path(folder, shard * HOURS_PER_SHARD)


def _lock(folder: Path, mode: int) -> int | None:
    """Hold a folder alone (LOCK_EX) or with others (LOCK_SH); None if that cannot be had now.

    Returns:
        A descriptor; closing it lets go.
    """
    try:
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return held if _hold(held, folder, mode) else None


def _hold(held: int, folder: Path, mode: int) -> bool:
    """Lock an open folder, or change its lock; False, and closed, if another has it or it was removed."""
    try:
        fcntl.flock(held, mode | fcntl.LOCK_NB)
        # Removed since it was opened, or while its lock was changed: the name is another folder's, or none's.
        if os.path.samestat(os.fstat(held), folder.stat()):
            return True
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(held)
    return False


def _unheld_bytes(folder: Path) -> int:
    """Return the bytes that removing a copy would free: 0 if a process holds it."""
    held = _lock(folder, fcntl.LOCK_EX)
    if held is None:
        return 0
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    os.close(held)
    return size


def _remove_unheld(folder: Path) -> None:
    """Remove a copy that no process holds."""
    held = _lock(folder, fcntl.LOCK_EX)
    if held is not None:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)
