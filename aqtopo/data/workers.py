"""Loader processes: start, signals, and the shared memory for their micro-batches.

Ctrl-C, `scancel` and Slurm's warning send signals to every process of a job. The trainer finishes its step
and needs its loader until then. So loader processes, and the fork server that starts them, block these
signals. Loader processes end with the trainer's iterator, or when the trainer terminates them.
"""

import functools
import multiprocessing
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
import zarr
from numpy.typing import NDArray

ByteBuffer = NDArray[np.uint8]
"""One-dimensional view of memory."""

_TRAINER_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

_PRELOADED = ["aqtopo.data.loader"]
"""Modules that the fork server imports once, not every loader process: torch takes over a second."""

_PAGE_BYTES = 4096

_FREE, _RESERVED, _IN_USE = range(3)
"""States of a slot of shared memory."""


def shared_buffer(size: int) -> torch.Tensor:
    """Return `size` uint8 in new shared memory."""
    # torch's default_collate allocates by `_new_shared`; the public `share_memory_` copies.
    untyped: Any = torch.UntypedStorage
    return torch.empty(0, dtype=torch.uint8).set_(untyped._new_shared(size))


class SlotPool:
    """Reusable slots of shared memory for micro-batches.

    New memory causes a page fault for each page in each process. A micro-batch of 2 pairs at 128 x 256 caused
    3000 faults, three quarters of a loader process's time. A slot has its pages after its first use. Only the
    trainer changes the state of a slot: reserved when a request is sent, in use when the result arrives, free
    when the last tensor over it is deleted. A started process gets the same memory.

    Args:
        slots: number of slots; without a free slot, a loader process allocates new memory.
        slot_bytes: size of each.

    Raises:
        RuntimeError: there is too little shared memory.
    """

    def __init__(self, slots: int, slot_bytes: int) -> None:
        self._slot_bytes = -(-slot_bytes // _PAGE_BYTES) * _PAGE_BYTES
        self._memory = shared_buffer(slots * self._slot_bytes)
        self._states = bytearray(slots)

    def buffer(self, slot: int) -> ByteBuffer:
        """Return a slot's memory, to write to."""
        memory: ByteBuffer = self._memory.numpy()
        return memory[slot * self._slot_bytes : (slot + 1) * self._slot_bytes]

    def reserve(self) -> int | None:
        """Reserve the lowest free slot, the most likely to have its pages; None if there is no free slot."""
        slot = self._states.find(_FREE)
        if slot < 0:
            return None
        self._states[slot] = _RESERVED
        return slot

    def hand_over(self, slot: int) -> ByteBuffer:
        """Return a reserved slot's memory, to read; the slot is free when nothing refers to the array."""
        assert self._states[slot] == _RESERVED
        buffer = self.buffer(slot)
        self._states[slot] = _IN_USE
        # A tensor made by torch.from_numpy refers to the array while its storage exists, views included.
        weakref.finalize(buffer, self._states.__setitem__, slot, _FREE).atexit = False
        return buffer

    def reclaim(self) -> None:
        """Free the reserved slots, once no process writes to them any more."""
        for slot, state in enumerate(self._states):
            if state == _RESERVED:
                self._states[slot] = _FREE


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Block the trainer's signals; a process started in this context inherits the mask and keeps it.

    A signal that arrives meanwhile is delivered to the trainer at the end.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _TRAINER_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def main_hidden() -> Iterator[None]:
    """Hide the main program from processes that start in this context.

    They need nothing of it, and would run a user's script without `if __name__ == "__main__"` again.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def worker_context(start: Literal["forkserver", "spawn"]) -> BaseContext:
    """Return the multiprocessing context; never fork, which copies locks held by other trainer threads."""
    context = multiprocessing.get_context(start)
    if start == "forkserver":
        context.set_forkserver_preload(_PRELOADED)
    return context


def worker_setup() -> Callable[[int], None]:
    """Return the function that each loader process runs first; call it in the trainer, for its process id."""
    return functools.partial(_set_up, os.getpid())


def _set_up(trainer: int, _worker: int) -> None:
    # A worker decodes one chunk at a time; zarr's threads would compete with the other ranks of the node.
    zarr.config.set({"threading.max_workers": 1, "async.concurrency": 1})
    signal.pthread_sigmask(signal.SIG_BLOCK, _TRAINER_SIGNALS)
    threading.Thread(target=_end_on_sigterm_of, args=(trainer,), daemon=True).start()


def _end_on_sigterm_of(trainer: int) -> None:
    """End this process at a SIGTERM from the trainer, which Python sends at exit; ignore other senders."""
    if sys.platform == "linux":
        while signal.sigwaitinfo([signal.SIGTERM]).si_pid != trainer:
            pass
    else:
        # The sender is unknown on other systems: end at any SIGTERM, so that no process remains.
        signal.sigwait([signal.SIGTERM])
    os._exit(0)
