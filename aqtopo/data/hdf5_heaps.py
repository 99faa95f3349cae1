"""Check of the global heaps of a NetCDF-4 file, which the HDF5 library may read without end.

A heap is a row of objects, each with its size ("HDF5 File Format Specification", section III.E). The library
goes on by the size of an object, also if it is 0: such a damaged file takes all time of a processor.
"""

import mmap
from pathlib import Path

_HEAP = b"GCOL\x01\0\0\0"
_HEADER_BYTES = 16
"""Of a heap, and of an object."""

MAX_FILE_BYTES = 2**30
"""Size of a file up to which it is searched, in about a second."""


def check_heaps_of_file(path: Path) -> None:
    """Check the heaps of a file of up to 1 GiB.

    Raises:
        ValueError: an object of a heap has no size.
    """
    with path.open("rb") as file:
        if 0 < path.stat().st_size <= MAX_FILE_BYTES:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                check_heaps(content)


def check_heaps(content: bytes | mmap.mmap) -> None:
    """Check the heaps of a file in memory.

    Raises:
        ValueError: an object of a heap has no size.
    """
    start = content.find(_HEAP)
    while start >= 0:
        end = min(start + int.from_bytes(content[start + 8 : start + 16], "little"), len(content))
        place = start + _HEADER_BYTES
        while place + _HEADER_BYTES <= end:
            index = int.from_bytes(content[place : place + 2], "little")
            size = int.from_bytes(content[place + 8 : place + 16], "little")
            # The size of free space, index 0, includes its header.
            step = size if index == 0 else _HEADER_BYTES + -(-size // 8) * 8
            if step == 0 or step >= 2**63:
                raise ValueError(f"an object of the HDF5 heap at byte {start} has the size {size}")
            place += step
        start = content.find(_HEAP, start + 1)
