"""File locks between processes; the operating system releases them when a process ends."""

import fcntl
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from aqtopo.distributed.rank_group import RankGroup, raise_problems_on_all_ranks
from aqtopo.refusal import BusyError

POLL_S = 0.5
"""Time between two attempts to get a lock that another process holds [s]."""


@contextmanager
def shared_lock(path: Path) -> Iterator[None]:
    """Hold a shared lock on a file, which excludes exclusive locks of other processes."""
    with path.open(encoding="utf-8") as file:
        _lock(file, fcntl.LOCK_SH)
        yield


@contextmanager
def exclusive_lock(path: Path, timeout_s: float = 0.0, reason: str = "") -> Iterator[bool]:
    """Try to hold an exclusive lock on a file; yield True if this process holds it.

    Waits at most `timeout_s` [s] for another process to release the lock. The message about the wait, on
    stderr, has the `reason` why the other process holds it.
    """
    until = time.monotonic() + timeout_s
    with path.open("rb+") as file:
        held = _try_exclusive(file)
        if not held and timeout_s:
            print(f"aqtopo: {reason}: waiting up to {timeout_s:g} s", file=sys.stderr, flush=True)  # noqa: T201
        while not held and time.monotonic() < until:
            time.sleep(POLL_S)
            held = _try_exclusive(file)
        yield held


@contextmanager
def exclusive_lock_on_all_ranks(
    path: Path, ranks: RankGroup, reason: str, remedy: str, timeout_s: float = 0.0
) -> Iterator[None]:
    """Hold an exclusive lock through rank 0 while all ranks work.

    Raises:
        BusyError: on all ranks: another process still holds the lock after `timeout_s`, or the file cannot be
            opened.
    """
    problems = []
    with ExitStack() as locks:
        if ranks.rank == 0:
            try:
                if not locks.enter_context(exclusive_lock(path, timeout_s, reason)):
                    waited = f", also after a wait of {timeout_s:g} s" if timeout_s else ""
                    problems = [f"another process holds {path}{waited}"]
            except OSError as error:
                problems = [str(error)]
        raise_problems_on_all_ranks(ranks, reason, problems, remedy, BusyError)
        yield


def _try_exclusive(file: IO[Any]) -> bool:
    try:
        _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock(file: IO[Any], mode: int) -> None:
    try:
        fcntl.flock(file, mode)
    except BlockingIOError:
        raise
    except OSError as error:  # a parallel file system mounted without locks
        warnings.warn(
            f"{file.name} cannot be locked ({error.strerror}). Make sure that only one run uses it.",
            stacklevel=5,
        )
