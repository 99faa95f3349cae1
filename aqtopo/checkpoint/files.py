"""Files of a saved state: what they must contain, to the bit, and how to write them whole or not at all.

A file is known by its size and the SHA-256 of each 1 MiB block, so that many ranks can check one file
together, each reading its share, and a message can say where a file is damaged. For a file of one block it
is the number that `sha256sum` prints.
"""

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from aqtopo.checkpoint.ranks import Ranks, refuse_together, share_by_size

if TYPE_CHECKING:
    from torch import Tensor

BLOCK_BYTES = 2**20
HASH_THREADS = 4


@dataclass(frozen=True)
class FileRecord:
    """What a file must be.

    Attributes:
        size: bytes.
        sha256: of each block, in order.
    """

    size: int
    sha256: tuple[str, ...]


def describe_file(path: Path, threads: int = HASH_THREADS) -> FileRecord:
    """Read a file once and note size and hashes."""
    size = path.stat().st_size
    return FileRecord(size, tuple(hash_blocks(path, range(-(-size // BLOCK_BYTES)), threads)))


def settle(path: Path, threads: int = HASH_THREADS) -> FileRecord:
    """Make sure that a file is on the disk, and describe it."""
    sync(path)
    return describe_file(path, threads)


def check_files(folder: Path, records: Mapping[str, FileRecord], ranks: Ranks) -> None:
    """Compare all files with their records, each rank its share of the blocks.

    Raises:
        RefusedError: on all ranks; it names every file that is missing, longer, shorter or different.
    """
    problems = [problem for name in records if (problem := _size_problem(folder / name, records[name].size))]
    blocks = [(name, index) for name, record in records.items() for index in range(len(record.sha256))]
    if not problems:
        sizes = [min(BLOCK_BYTES, records[name].size - index * BLOCK_BYTES) for name, index in blocks]
        problems = list(_changed_blocks(folder, records, share_by_size(blocks, sizes, ranks)))
    refuse_together(ranks, f"{folder} is damaged", problems, "Resume from another tag, or restore the files.")


def _changed_blocks(
    folder: Path, records: Mapping[str, FileRecord], blocks: Iterable[tuple[str, int]]
) -> Iterable[str]:
    for name, pairs in groupby(blocks, key=itemgetter(0)):
        indices = [index for _, index in pairs]
        for index, found in zip(indices, hash_blocks(folder / name, indices), strict=True):
            if found != records[name].sha256[index]:
                yield f"{name}: changed within bytes {index * BLOCK_BYTES} to {(index + 1) * BLOCK_BYTES}"


def hash_blocks(path: Path, blocks: Iterable[int], threads: int = HASH_THREADS) -> Iterator[str]:
    """The hashes of some blocks of a file, on a few threads: both reading and hashing let others run."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with ThreadPoolExecutor(threads) as executor:
            yield from executor.map(
                lambda block: _hash(os.pread(descriptor, BLOCK_BYTES, block * BLOCK_BYTES)), blocks
            )
    finally:
        os.close(descriptor)


def _size_problem(path: Path, size: int) -> str | None:
    if not path.is_file():
        return f"{path.name}: missing ({path})"
    found = path.stat().st_size
    return None if found == size else f"{path.name}: {found} bytes instead of {size} ({path})"


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def seal(text: str) -> str:
    """A JSON object, indented by one, with a last entry that is the SHA-256 of all the rest."""
    return f'{text[:-2]},\n "sha256": "{_hash(text.encode())}"\n}}\n'


def unseal(text: str) -> str:
    """The object without its seal.

    Raises:
        ValueError: the seal does not fit every byte of the rest.
    """
    match = re.fullmatch(r'(.*),\n "sha256": "([0-9a-f]{64})"\n}\n', text, re.DOTALL)
    if match is None or _hash((whole := f"{match[1]}\n}}").encode()) != match[2]:
        raise ValueError("its last line, the SHA-256 of the rest, does not fit")
    return whole


def sync(path: Path) -> None:
    """Make sure that a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_tensors(path: Path, tensors: "dict[str, Tensor]", metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file that whoever may read new files here may read.

    `save_file` alone keeps it from all but its owner: from a colleague who is to have the model, too.
    """
    from safetensors.torch import save_file  # loads PyTorch, which most callers of this module do not need

    path.touch()  # with the rights that the folder and the umask give
    rights = stat.S_IMODE(path.stat().st_mode)
    save_file(tensors, path, metadata)
    path.chmod(rights)


def write_durably(path: Path, text: str) -> None:
    """Write a small UTF-8 file aside, sync and rename it: readers see old text or new, never a part."""
    aside = path.with_name(f"{path.name}.tmp")
    aside.write_text(text, encoding="utf-8")
    sync(aside)
    aside.replace(path)
    sync(path.parent)
