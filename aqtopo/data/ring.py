"""Shared memory in which loader processes hand micro-batches to the trainer, used over and over.

Memory that is new has to be given page by page by the kernel, to each process that looks at it: for a
micro-batch of 2 pairs at 128 x 256 that was 3000 page faults and three quarters of a loader process's time.
A slot of the ring is mapped when the loader starts, and has its pages after its first use.

The trainer alone decides who uses a slot: it is taken when a request is sent, lent when the answer is there,
and free again when the last tensor over it is gone.
"""

import weakref
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_PAGE_BYTES = 4096

Block = NDArray[np.uint8]


class _State(IntEnum):
    FREE = 0
    TAKEN = 1
    LENT = 2


class Ring:
    """Slots of shared memory; sent to a process as it starts, it is the same memory there.

    Args:
        slots: how many; a request for which none is free does without.
        slot_bytes: size of each.

    Raises:
        RuntimeError: there is not so much shared memory.
    """

    def __init__(self, slots: int, slot_bytes: int) -> None:
        self._slot_bytes = -(-slot_bytes // _PAGE_BYTES) * _PAGE_BYTES
        # `_new_shared` is what torch's default_collate allocates by; the public `share_memory_` copies.
        untyped: Any = torch.UntypedStorage
        storage = untyped._new_shared(slots * self._slot_bytes)
        self._memory = torch.empty(0, dtype=torch.uint8).set_(storage)
        self._states = bytearray(slots)

    def block(self, slot: int) -> Block:
        """A slot's memory, to write to."""
        memory: Block = self._memory.numpy()
        return memory[slot * self._slot_bytes : (slot + 1) * self._slot_bytes]

    def take(self) -> int | None:
        """A free slot, the lowest, whose pages are the most likely to be there; none if all are in use."""
        slot = self._states.find(_State.FREE)
        if slot < 0:
            return None
        self._states[slot] = _State.TAKEN
        return slot

    def lend(self, slot: int) -> Block:
        """A slot's memory to read; it is free again when nothing refers to the array any more."""
        assert self._states[slot] == _State.TAKEN
        block = self.block(slot)
        self._states[slot] = _State.LENT
        # A tensor made by torch.from_numpy holds the array for as long as its storage lives, views included.
        weakref.finalize(block, self._states.__setitem__, slot, int(_State.FREE)).atexit = False
        return block

    def reclaim(self) -> None:
        """Free what was taken and will not be lent, once no process writes any more."""
        for slot, state in enumerate(self._states):
            if state == _State.TAKEN:
                self._states[slot] = _State.FREE
