"""Loader processes: how they start, what they read with, and which signals they leave to the trainer.

Ctrl-C, `scancel` and Slurm's warning reach every process of a job. The trainer answers by finishing its step,
for which it still needs its loader: so loader processes hold these signals off, and so does the fork server
that starts them. They end with the trainer's iterator, or when the trainer itself terminates them.
"""

import functools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from typing import Any, Literal

import zarr

_TRAINERS_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

_PRELOADED = ["__main__", "aqtopo.data.loader"]
"""Modules that the fork server imports once, instead of every loader process: torch takes over a second."""


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
    """What each loader process runs first; made in the trainer, whose process id it remembers."""
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
