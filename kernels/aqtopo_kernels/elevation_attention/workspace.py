"""Memory that calls on the CPU reuse, because new memory costs a page fault for every 4 KiB."""

import math
import threading

import torch
from torch import Tensor

_LARGEST_KEPT = 1 << 26
"""Largest buffer that is kept [bytes]; a thread keeps at most nine for each dtype."""


class Workspace(threading.local):
    """Buffers by name, one set for each thread, kept until the thread ends."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def empty(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return a tensor with undefined values, valid until the next call with this name and dtype."""
        size = math.prod(shape)
        if size * dtype.itemsize > _LARGEST_KEPT:
            return torch.empty(shape, dtype=dtype)
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.numel() < size:
            with torch.inference_mode(mode=False):  # tensors made within it could not be written outside
                buffer = self._buffers[name, dtype] = torch.empty(size, dtype=dtype)
        return buffer[:size].view(shape)


workspace = Workspace()
