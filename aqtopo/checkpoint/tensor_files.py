"""Torch files of one fp32 tensor each that many ranks write together, a block at a time.

One rank makes the file with a hole where the elements go, which takes neither time nor space; then every
block, the unit in which files are hashed and shared out, is filled by one rank and no other.
"""

import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.serialization import skip_data

from aqtopo.checkpoint.files import BLOCK_BYTES, hash_blocks, sync
from aqtopo.checkpoint.pickles import load_data, save_data
from aqtopo.refusal import RefusedError

ELEMENT_BYTES = 4
_NAME_LENGTHS_AT = 26
_LOCAL_HEADER = 30
"""Of an entry in a zip file [byte]: where the lengths of name and extra field are, and where these begin."""


class Elements(Protocol):
    """A state whose tensors can be read in parts."""

    def elements(self, name: str, kind: str, place: slice) -> Tensor:
        """Consecutive elements of a parameter's flattened fp32 weight or moment; reads only those."""


@dataclass(frozen=True)
class TensorFile:
    """A file of one tensor.

    Attributes:
        name: path within the folder of the state.
        parameter: whose tensor it is.
        kind: weight or moment.
        elements: in the tensor.
        offset: of the first element [byte].
        size: of the file [byte].
    """

    name: str
    parameter: str
    kind: str
    elements: int
    offset: int
    size: int


@dataclass(frozen=True)
class Block:
    """One block of a tensor's file.

    Attributes:
        file: the file.
        index: which of its blocks.
    """

    file: TensorFile
    index: int

    @property
    def size(self) -> int:
        """Of the block [byte]: the last of a file is shorter."""
        return min(BLOCK_BYTES, self.file.size - self.index * BLOCK_BYTES)

    @property
    def place(self) -> slice:
        """The elements that lie in this block; the first and last block hold the file's own words too."""
        first, end = (self.index * BLOCK_BYTES, (self.index + 1) * BLOCK_BYTES)
        start, stop = ((byte - self.file.offset) // ELEMENT_BYTES for byte in (first, end))
        return slice(min(max(start, 0), self.file.elements), min(max(stop, 0), self.file.elements))


def create(path: Path, shape: Sequence[int]) -> tuple[int, int]:
    """Make a tensor's file with a hole for its elements; where that begins, and the file's size [byte]."""
    with skip_data():
        save_data({"param": torch.empty(shape, dtype=torch.float32)}, path)
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        (entry,) = (info for info in archive.infolist() if info.filename.endswith("/data/0"))
        file.seek(entry.header_offset + _NAME_LENGTHS_AT)
        lengths = int.from_bytes(file.read(2), "little") + int.from_bytes(file.read(2), "little")
    offset = entry.header_offset + _LOCAL_HEADER + lengths
    assert offset % ELEMENT_BYTES == 0, path
    return offset, path.stat().st_size


def blocks_of(files: Sequence[TensorFile]) -> list[Block]:
    """All blocks, one file after the other."""
    return [Block(file, index) for file in files for index in range(-(-file.size // BLOCK_BYTES))]


def fill(folder: Path, state: Elements, blocks: Sequence[Block]) -> dict[str, dict[int, str]]:
    """Write the elements of some blocks, read them back and compare.

    Args:
        folder: of the state; its files exist.
        state: where the elements come from.
        blocks: in the order of `blocks_of`.

    Returns:
        SHA-256 by file and block.

    Raises:
        RefusedError: what was written does not read back the same.
    """
    hashes: dict[str, dict[int, str]] = {}
    for file, group in groupby(blocks, key=attrgetter("file")):
        own = list(group)
        path = folder / file.name
        with path.open("r+b") as opened:
            for block in own:
                part = state.elements(file.parameter, file.kind, block.place)
                os.pwrite(opened.fileno(), part.numpy().tobytes(), _position(block))
        sync(path)
        _compare(path, state, own)
        indices = [block.index for block in own]
        hashes[file.name] = dict(zip(indices, hash_blocks(path, indices), strict=True))
    return hashes


def _position(block: Block) -> int:
    first: int = block.place.start
    return block.file.offset + first * ELEMENT_BYTES


def _compare(path: Path, state: Elements, blocks: Sequence[Block]) -> None:
    written = load_data(path)["param"].flatten()
    for block in blocks:
        part = state.elements(block.file.parameter, block.file.kind, block.place)
        if not torch.equal(written[block.place].view(torch.int32), part.view(torch.int32)):
            raise RefusedError(f"{path}: what was written does not read back the same.")


def joined(parts: Iterable[Mapping[str, Mapping[str, str]]]) -> dict[str, tuple[str, ...]]:
    """Hashes of whole files from everyone's blocks, with indices as JSON gives them back."""
    files: dict[str, dict[int, str]] = {}
    for part in parts:
        for name, hashes in part.items():
            files.setdefault(name, {}).update((int(index), value) for index, value in hashes.items())
    return {name: tuple(hashes[index] for index in sorted(hashes)) for name, hashes in files.items()}
