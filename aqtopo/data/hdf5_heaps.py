"""Check of the global heaps of a NetCDF-4 file: the HDF5 library never returns from some damaged ones.

A heap is a sequence of objects, each with its size ("HDF5 File Format Specification", section III.E). The
library adds the size to the position to find the next object. If the size is 0 or the sum overflows, it loops
forever.
"""

import mmap
from pathlib import Path

_HEAP = b"GCOL\x01\0\0\0"
_HEADER_BYTES = 16
"""Size of a heap's header, and of an object's."""

MAX_FILE_BYTES = 2**30
"""Largest file that is searched, in about a second; larger files are not checked."""


def check_heaps_of_file(path: Path) -> None:
    """Check the heaps of a file of up to 1 GiB.

    Raises:
        ValueError: an object has a size with which HDF5 loops forever.
    """
    with path.open("rb") as file:
        if 0 < path.stat().st_size <= MAX_FILE_BYTES:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                check_heaps(content)


def check_heaps(content: bytes | mmap.mmap) -> None:
    """Check the heaps of a file in memory.

    Raises:
        ValueError: an object has a size with which HDF5 loops forever, or heaps overlap.
    """
    start, left = content.find(_HEAP), 4 * len(content) // _HEADER_BYTES
    while start >= 0:
        end = min(start + int.from_bytes(content[start + 8 : start + 16], "little"), len(content))
        position = start + _HEADER_BYTES
        while position + _HEADER_BYTES <= end:
            index = int.from_bytes(content[position : position + 2], "little")
            size = int.from_bytes(content[position + 8 : position + 16], "little")
            # The size of free space, index 0, includes its header.
            step = size if index == 0 else _HEADER_BYTES + -(-size // 8) * 8
            if step == 0 or step >= 2**63:
                raise ValueError(f"an object of the HDF5 heap at byte {start} has the impossible size {size}")
            position, left = position + step, left - 1
        if left < 0:  # a walk through each of many heaps that overlap would take hours
            raise ValueError(f"the HDF5 heap at byte {start} overlaps others")
        start = content.find(_HEAP, start + 1)
