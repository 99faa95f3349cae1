"""Files of a saved state: checksums, atomic writes, locks, and tensor files read without running code.

A `FileRecord` has the size of a file and the SHA-256 of each 1 MiB block. Ranks check disjoint blocks of one
file, and a message can name the damaged bytes. The hash of a file of one block is the output of `sha256sum`.

The operating system releases a lock when its process ends.

Torch files are read with `weights_only`; the only globals allowed are the data classes that DeepSpeed
stores in its shards. A file that needs any other global is refused before any object of it is built.
"""

import copyreg
import fcntl
import hashlib
import os
import pickle
import re
import stat
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

from pydantic import Field

from aqtopo.distributed.process_group import (
    RankGroup,
    import_deepspeed_quietly,
    raise_problems_on_all_ranks,
    shard_by_size,
)
from aqtopo.refusal import READ_ERRORS, BusyError, RefusedError, file_named
from aqtopo.safe_files import is_special, replacing

if TYPE_CHECKING:
    from torch import Tensor

# Functions that need PyTorch import it, so that commands that read only names and sizes start faster.
BLOCK_BYTES = 2**20
HASH_THREADS = 4

POLL_S = 0.5
"""Time between two attempts to get a lock that another process holds [s]."""

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*$")]
"""Path of a file within a saved state or an export: relative, without `..`."""


@dataclass(frozen=True)
class FileRecord:
    """Expected size of a file [bytes], and the hash of each block, in order."""

    size: int
    sha256: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.sha256) != -(-self.size // BLOCK_BYTES):
            raise ValueError(f"{len(self.sha256)} hashes do not fit a file of {self.size} bytes")


def describe_file(path: Path, threads: int = HASH_THREADS) -> FileRecord:
    """Return a file's size and hashes."""
    size = path.stat().st_size
    return FileRecord(size, tuple(_hash_blocks(path, range(-(-size // BLOCK_BYTES)), threads)))


def sync_and_hash(path: Path, threads: int = HASH_THREADS) -> FileRecord:
    """Flush a file to the disk and return its size and hashes."""
    sync(path)
    return describe_file(path, threads)


def check_files(folder: Path, records: Mapping[str, FileRecord], ranks: RankGroup) -> None:
    """Compare all files with their records; each rank hashes its shard of the blocks.

    Raises:
        RefusedError: on all ranks: it names every file that is missing, longer, shorter or different.
    """
    problems = [problem for name in records if (problem := _size_problem(folder / name, records[name].size))]
    blocks = [(name, index) for name, record in records.items() for index in range(len(record.sha256))]
    if not problems:
        sizes = [min(BLOCK_BYTES, records[name].size - index * BLOCK_BYTES) for name, index in blocks]
        problems = list(_changed_blocks(folder, records, shard_by_size(blocks, sizes, ranks)))
    raise_problems_on_all_ranks(
        ranks, f"{folder} is damaged", problems, "Resume from another tag, or restore the files."
    )


def _size_problem(path: Path, size: int) -> str | None:
    if not path.is_file():
        return f"{path.name}: missing ({path})"
    found = path.stat().st_size
    return None if found == size else f"{path.name}: {found} bytes instead of {size} ({path})"


def _changed_blocks(
    folder: Path, records: Mapping[str, FileRecord], blocks: Iterable[tuple[str, int]]
) -> Iterable[str]:
    for name, pairs in groupby(blocks, key=itemgetter(0)):
        indices = [index for _, index in pairs]
        for index, found in zip(indices, _hash_blocks(folder / name, indices), strict=True):
            if found != records[name].sha256[index]:
                yield f"{name}: bytes {index * BLOCK_BYTES} to {(index + 1) * BLOCK_BYTES} have changed"


def _hash_blocks(path: Path, blocks: Iterable[int], threads: int = HASH_THREADS) -> Iterator[str]:
    """Hash some blocks of a file on a few threads; reading and hashing release the interpreter lock."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with ThreadPoolExecutor(threads) as executor:
            yield from executor.map(
                lambda block: _hash(os.pread(descriptor, BLOCK_BYTES, block * BLOCK_BYTES)), blocks
            )
    finally:
        os.close(descriptor)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def append_checksum(text: str) -> str:
    """Return a JSON object, indented by one, with the SHA-256 of its text as an additional last entry."""
    return f'{text[:-2]},\n "sha256": "{_hash(text.encode())}"\n}}\n'


def remove_checksum(text: str) -> str:
    """Return the JSON object without the entry that `append_checksum` added.

    Raises:
        ValueError: the entry is missing, or the rest has another SHA-256.
    """
    match = re.fullmatch(r'(.*),\n "sha256": "([0-9a-f]{64})"\n}\n', text, re.DOTALL)
    if match is None or _hash((whole := f"{match[1]}\n}}").encode()) != match[2]:
        raise ValueError("its last entry is not the SHA-256 of the rest")
    return whole


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, text: str) -> None:
    """Write a small UTF-8 file: temporary file, fsync, atomic rename. Readers see the old or the new text."""
    with replacing(path) as temporary:
        with file_named(temporary), temporary.open("x", encoding="utf-8") as file:
            file.write(text)
        sync(temporary)
    sync(path.parent)


@contextmanager
def shared_lock(path: Path) -> Iterator[None]:
    """Hold a shared lock on a file, which excludes exclusive locks of other processes."""
    with path.open(encoding="utf-8") as file:
        _lock(file, fcntl.LOCK_SH)
        yield


@contextmanager
def exclusive_lock(path: Path, timeout_s: float = 0.0, reason: str = "") -> Iterator[bool]:
    """Try to hold an exclusive lock on a file; yield True if this process holds it.

    Waits at most `timeout_s` [s] for another process to release the lock. The message about the wait, on
    stderr, has the `reason` why the other process holds it.
    """
    until = time.monotonic() + timeout_s
    with path.open("rb+") as file:
        held = _try_exclusive(file)
        if not held and timeout_s:
            print(f"aqtopo: {reason}: waiting up to {timeout_s:g} s", file=sys.stderr, flush=True)  # noqa: T201
        while not held and time.monotonic() < until:
            time.sleep(POLL_S)
            held = _try_exclusive(file)
        yield held


@contextmanager
def exclusive_lock_on_all_ranks(
    path: Path, ranks: RankGroup, reason: str, remedy: str, timeout_s: float = 0.0
) -> Iterator[None]:
    """Hold an exclusive lock through rank 0 while all ranks work.

    Raises:
        BusyError: on all ranks: another process still holds the lock after `timeout_s`, or the file cannot be
            opened.
    """
    problems = []
    with ExitStack() as locks:
        if ranks.rank == 0:
            try:
                if not locks.enter_context(exclusive_lock(path, timeout_s, reason)):
                    waited = f", also after a wait of {timeout_s:g} s" if timeout_s else ""
                    problems = [f"another process holds {path}{waited}"]
            except OSError as error:
                problems = [str(error)]
        raise_problems_on_all_ranks(ranks, reason, problems, remedy, BusyError)
        yield


def _try_exclusive(file: IO[Any]) -> bool:
    try:
        _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock(file: IO[Any], mode: int) -> None:
    try:
        fcntl.flock(file, mode)
    except BlockingIOError:
        raise
    except OSError as error:  # a parallel file system mounted without locks
        warnings.warn(
            f"{file.name} cannot be locked ({error.strerror}). Make sure that only one run uses it.",
            stacklevel=5,
        )


def write_tensors(path: Path, tensors: "dict[str, Tensor]", metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file with the access rights of any new file in its folder.

    `save_file` alone makes it readable by its owner only.

    Raises:
        OSError: it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path.touch()
    rights = stat.S_IMODE(path.stat().st_mode)
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written ({write_error(path, error)})") from error
    path.chmod(rights)


def write_error(path: Path, error: Exception) -> str:
    """Return the reason why a file cannot be written; some libraries say only `iostream error`."""
    if isinstance(error, OSError):
        return str(error)
    try:
        with path.open("ab") as file:
            file.write(bytes(2**20))
            os.fsync(file.fileno())
    except OSError as reason:
        return str(reason)
    return first_line(error)


def load_weights(path: Path) -> "dict[str, Tensor]":
    """Read the tensors of a safetensors file by name.

    Raises:
        ValueError: the file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if is_special(path):
        raise ValueError(
            f"the weights {path} are a pipe or a device and were not read. Choose another --tag."
        )
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read the weights {path}: {error}. Choose another --tag.") from error


def load_torch(path: Path) -> Any:
    """Load the tensors and plain values of a torch file; tensors are memory-mapped.

    Raises:
        RefusedError: the file cannot be read, or needs a global that is not allowed.
    """
    import torch

    if is_special(path):
        raise RefusedError(f"{path} is a pipe or a device and was not read.")
    try:
        with torch.serialization.safe_globals(_deepspeed_classes()):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        # The library's text advises to load the file unsafely; only the name of the code is of use.
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        needs = f": it needs {code[1]}" if code else ""
        raise RefusedError(
            f"{path} holds more than data, or is damaged, and was not loaded{needs}."
        ) from error
    except READ_ERRORS as error:
        raise RefusedError(f"{path} cannot be read: {first_line(error)}") from error


@contextmanager
def refused_contents(path: Path) -> Iterator[None]:
    """Refuse a file, or a folder, whose contents are not those of a saved state.

    Raises:
        RefusedError: a key is missing, or a value is of another type or shape.
    """
    try:
        yield
    except READ_ERRORS as error:
        raise RefusedError(
            f"{path} holds other contents than a saved state ({type(error).__name__}: {first_line(error)})."
        ) from error


def save_torch(data: Any, path: Path) -> None:
    """Write a torch file that `load_torch` accepts."""
    import torch

    with loadable_torch_files():
        torch.save(data, path)


@contextmanager
def loadable_torch_files() -> Iterator[None]:
    """Make torch.save write files that `load_torch` accepts, without CRC-32.

    ZeRO's stage is pickled by its number: some Pythons, such as Debian 12's 3.11.2, pickle an enum member
    as a call of `getattr`, which `load_torch` does not allow. SHA-256 replaces CRC-32: 0.25 s instead of
    1.4 s for 312 MB on one core.
    """
    import_deepspeed_quietly()
    import torch
    from deepspeed.runtime.zero.config import ZeroStageEnum

    copyreg.pickle(ZeroStageEnum, _pickle_by_value)  # global, but only for this enum
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


def _pickle_by_value(member: Enum) -> tuple[type[Enum], tuple[object]]:
    return type(member), (member.value,)


def _deepspeed_classes() -> list[Any]:
    """Return the classes in ZeRO's shards; unpickling them runs no code of theirs."""
    import_deepspeed_quietly()
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text; its class if it has no text."""
    return (str(error).splitlines() or [type(error).__name__])[0]
