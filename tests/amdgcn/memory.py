"""Memory of a kernel: the tensors that were passed, and the LDS of one workgroup."""

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.amdgcn.assembly import EmulationError
from tests.amdgcn.operands import U32, Lanes

Addresses = NDArray[np.int64]
_NEVER = -1
_SEVERAL = -2


Views = dict[int, NDArray[Any]]
"""The same bytes as elements of 1, 2 and 4 bytes."""


def _views(raw: NDArray[np.uint8]) -> Views:
    kinds = {1: np.uint8, 2: np.uint16, 4: np.uint32}
    return {width: raw[: raw.size // width * width].view(kind) for width, kind in kinds.items()}


@dataclass(frozen=True)
class _Region:
    start: int
    size: int
    views: Views


class Memory:
    """Regions of this process's memory that a kernel may touch; counts the bytes."""

    def __init__(self) -> None:
        self._regions: list[_Region] = []
        self.loaded = 0
        self.stored = 0

    def allow(self, start: int, size: int) -> None:
        """Let the kernel touch a region [bytes]."""
        if not size or any(region.start == start and region.size >= size for region in self._regions):
            return
        assert start % 4 == 0
        raw = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(start))
        self._regions.append(_Region(start, size, _views(raw)))

    def load(self, at: Addresses, size: int, base: int | None = None) -> Lanes:
        """Return `size` bytes from each address, (words, addresses); `base` lies in the region that is meant.

        Raises:
            EmulationError: an address is outside the region or not aligned.
        """
        self.loaded += size * at.size
        view, elements = self._elements(at, size, base)
        return view[elements].astype(U32, copy=False)

    def store(self, at: Addresses, values: Lanes, size: int, base: int | None = None) -> None:
        """Store `size` bytes to each address; errors as in `load`."""
        self.stored += size * at.size
        view, elements = self._elements(at, size, base)
        view[elements] = values.astype(view.dtype, copy=False)

    def _elements(self, at: Addresses, size: int, base: int | None) -> tuple[NDArray[Any], Addresses]:
        low, high = int(at.min()), int(at.max()) + size
        for region in self._regions:
            end = region.start + region.size
            if (base is None or region.start <= base < end) and region.start <= low and high <= end:
                width = min(size, 4)
                if (at % width).any():
                    raise EmulationError(f"an address is not a multiple of {width} bytes")
                steps = np.arange(size // width)[:, None]
                return region.views[width], (at - region.start) // width + steps
        raise EmulationError(f"bytes {low:#x} to {high:#x} are outside every tensor that was passed")


@dataclass(frozen=True)
class Touch:
    """Pairs of bytes of LDS that an instruction read or wrote."""

    write: bool
    pairs: Addresses


class LDS:
    """LDS of one workgroup. It knows which wave last wrote and read every two bytes, and in which epoch.

    An epoch ends at a barrier. Waves may write equal values to one place: if a tile is smaller than the
    workgroup, several waves hold it.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._views = _views(np.zeros(size, np.uint8))
        self._epoch = 0
        self._written, self._writer, self._read, self._reader = np.full((4, size // 2), _NEVER)
        self.loaded = 0
        self.stored = 0

    def next_epoch(self) -> None:
        """Pass a barrier."""
        self._epoch += 1

    def write(self, wave: int, at: Addresses, values: Lanes, size: int) -> Touch:
        """Write `size` bytes to each address.

        Raises:
            EmulationError: an address is out of bounds or not aligned, or another wave touched it in this
                epoch.
        """
        self.stored += size * at.size
        elements, pairs = self._places(at, size)
        before = self._views[2][pairs]
        view = self._views[min(size, 4)]
        view[elements] = values.astype(view.dtype, copy=False)
        touch = Touch(True, pairs)
        self.mark(wave, touch, before)
        return touch

    def read(self, wave: int, at: Addresses, size: int) -> tuple[Lanes, Touch]:
        """Return `size` bytes from each address, (words, addresses).

        Raises:
            EmulationError: as in `write`, or nothing was written there.
        """
        self.loaded += size * at.size
        elements, pairs = self._places(at, size)
        touch = Touch(False, pairs)
        self.mark(wave, touch)
        return self._views[min(size, 4)][elements].astype(U32, copy=False), touch

    def mark(self, wave: int, touch: Touch, before: NDArray[Any] | None = None) -> None:
        """Record a touch in this epoch; `before` are the values that a write replaced.

        Raises:
            EmulationError: another wave touched it in this epoch, or a read place was never written.
        """
        pairs = touch.pairs
        other_wrote = (self._written[pairs] == self._epoch) & (self._writer[pairs] != wave)
        if touch.write:
            if ((self._read[pairs] == self._epoch) & (self._reader[pairs] != wave)).any():
                raise EmulationError("LDS race: another wave has read this since the last barrier")
            if before is not None and other_wrote.any():
                other_wrote &= before != self._views[2][pairs]
                if other_wrote.any():
                    raise EmulationError("LDS race: another wave has written this since the last barrier")
            self._written[pairs], self._writer[pairs] = self._epoch, wave
            return
        if other_wrote.any():
            raise EmulationError("LDS race: another wave has written this since the last barrier")
        if (self._written[pairs] == _NEVER).any():
            raise EmulationError("nothing was written to this LDS address")
        other_read = (self._read[pairs] == self._epoch) & (self._reader[pairs] != wave)
        self._reader[pairs] = np.where(other_read, _SEVERAL, wave)
        self._read[pairs] = self._epoch

    def _places(self, at: Addresses, size: int) -> tuple[Addresses, Addresses]:
        if at.size and not (int(at.min()) >= 0 and int(at.max()) + size <= self._size):
            raise EmulationError(f"LDS address {int(at.max())} + {size} bytes is beyond {self._size} bytes")
        width = min(size, 4)
        if (at % width).any():
            raise EmulationError(f"an LDS address is not a multiple of {width} bytes")
        elements = at // width + np.arange(size // width)[:, None]
        return elements, at // 2 + np.arange(max(size // 2, 1))[:, None]
