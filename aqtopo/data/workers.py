"""Loader processes: their start, their signal masks, and the shared memory for their micro-batches.

Ctrl-C, `scancel` and Slurm's warning reach every process of a job. The trainer finishes its step, for which
it still needs its loader. So the loader processes and the fork server that starts them block these signals.
They end with the trainer's iterator, or when the trainer terminates them.
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
from enum import IntEnum
from multiprocessing.context import BaseContext
from typing import Any, Literal

import numpy as np
import torch
import zarr
from numpy.typing import NDArray

_TRAINERS_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

_PRELOADED = ["__main__", "aqtopo.data.loader"]
"""Modules that the fork server imports once, instead of every loader process: torch takes over a second."""

_PAGE_BYTES = 4096

Block = NDArray[np.uint8]


def worker_context(start: Literal["forkserver", "spawn"]) -> BaseContext:
    """The way to start processes; never fork, which copies locks that other threads of the trainer hold."""
    context = multiprocessing.get_context(start)
    if start == "forkserver":
        context.set_forkserver_preload(_PRELOADED)
    return context


@contextmanager
def signals_held() -> Iterator[None]:
    """Block the trainer's signals for a moment: processes started in it inherit that, for good.

    Nothing is lost: a signal that arrives meanwhile is delivered at the end.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _TRAINERS_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Workers:
    """The loader processes of one loader, so that they can be ended when they do not answer."""

    def __init__(self) -> None:
        self._processes: list[Any] = []

    @contextmanager
    def started(self) -> Iterator[None]:
        """Remember the processes that are started in it; they leave the trainer's signals alone."""
        before = {process.pid for process in multiprocessing.active_children()}
        with signals_held():
            yield
        new = [process for process in multiprocessing.active_children() if process.pid not in before]
        self._processes += new

    def kill(self) -> None:
        """End them at once. One that waits for the file system in the kernel ends when that answers."""
        for process in self._processes:
            process.kill()


def worker_setup() -> Callable[[int], None]:
    """Return the initializer of loader processes; it holds the process id of the caller, the trainer."""
    return functools.partial(_set_up, os.getpid())


def _set_up(trainer: int, _worker: int) -> None:
    # A worker decodes one chunk at a time; zarr's threads would compete with the other ranks of the node.
    zarr.config.set({"threading.max_workers": 1, "async.concurrency": 1})
    signal.pthread_sigmask(signal.SIG_BLOCK, _TRAINERS_SIGNALS)
    threading.Thread(target=_end_for, args=(trainer,), daemon=True).start()


def _end_for(trainer: int) -> None:
    """End this process when the trainer terminates it, as Python does at exit; ignore other senders."""
    if sys.platform == "linux":
        while signal.sigwaitinfo([signal.SIGTERM]).si_pid != trainer:
            pass
        os._exit(0)
    else:
        # Elsewhere the sender is unknown. Better to end too early than never.
        signal.sigwait([signal.SIGTERM])
        os._exit(0)


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
