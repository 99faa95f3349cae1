"""Size of a classic NetCDF file (CDF-1, CDF-2, CDF-5) by its header.

The format is described in the NetCDF user's guide, appendix "File Format Specifications".
"""

from math import prod
from typing import BinaryIO

_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 4, 6: 8, 7: 1, 8: 2, 9: 4, 10: 8, 11: 8}
_MAX_NAME = 2**16


def classic_size(file: BinaryIO) -> int:
    """Return the bytes that the variables of a classic NetCDF file need.

    Args:
        file: at its first byte.

    Raises:
        ValueError: the header is incomplete or invalid.
    """
    return _Header(file).size()


class _Header:
    """Reader of a header: `wide` counts have 8 bytes instead of 4 in CDF-5."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        version = self._bytes(4)[3]
        self._wide = 8 if version == 5 else 4
        self._offset = 4 if version == 1 else 8

    def size(self) -> int:
        records = self._number(self._wide)
        if records == 256**self._wide - 1:
            records = 0  # a stream that was not finished
        sizes = [self._dimension() for _ in range(self._list())]
        self._attributes()
        ends, record_ends, record_bytes = [self._file.tell()], [], []
        for _ in range(self._list()):
            self._name()
            shape = [sizes[self._number(self._wide)] for _ in range(self._number(self._wide))]
            self._attributes()
            item = self._type()
            self._number(self._wide)  # vsize, which is wrong for large variables
            begin = self._number(self._offset)
            if shape and shape[0] == 0:
                record_bytes.append(prod(shape[1:]) * item)
                record_ends.append(begin + record_bytes[-1])
            else:
                ends.append(begin + prod(shape) * item)
        if record_ends and records:
            # The slabs of several record variables are padded to 4 bytes.
            slabs = record_bytes if len(record_bytes) == 1 else [-(-size // 4) * 4 for size in record_bytes]
            ends.append(max(record_ends) + (records - 1) * sum(slabs))
        return max(ends)

    def _dimension(self) -> int:
        self._name()
        return self._number(self._wide)

    def _attributes(self) -> None:
        for _ in range(self._list()):
            self._name()
            item = self._type()
            self._bytes(-(-item * self._number(self._wide) // 4) * 4)

    def _list(self) -> int:
        self._number(4)  # tag
        return self._number(self._wide)

    def _name(self) -> None:
        length = self._number(self._wide)
        if length > _MAX_NAME:
            raise ValueError("its header is invalid")
        self._bytes(-(-length // 4) * 4)

    def _type(self) -> int:
        found = _TYPE_BYTES.get(self._number(4))
        if found is None:
            raise ValueError("its header is invalid")
        return found

    def _number(self, width: int) -> int:
        return int.from_bytes(self._bytes(width), "big")

    def _bytes(self, count: int) -> bytes:
        found = self._file.read(count)
        if len(found) < count:
            raise ValueError("its header is incomplete")
        return found
