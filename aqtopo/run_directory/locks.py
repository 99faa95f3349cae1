"""Locks on files: a killed process's hold ends with it, so that none is ever left behind."""

import fcntl
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from aqtopo.refusal import BusyError

if TYPE_CHECKING:
    from aqtopo.checkpoint.ranks import Ranks

POLL_S = 0.5
"""Between two tries to get a lock that another process holds."""


@contextmanager
def shared(path: Path) -> Iterator[None]:
    """Keep others from holding a file for themselves alone."""
    with path.open() as file:
        _lock(file, fcntl.LOCK_SH)
        yield


@contextmanager
def alone(path: Path, patience_s: float = 0.0, what: str = "") -> Iterator[bool]:
    """Hold a file for oneself alone; whether that could be had in time.

    Args:
        path: the file.
        patience_s: how long to wait for another process to let it go; it is said on stderr.
        what: why it is held, to say that.
    """
    until = time.monotonic() + patience_s
    with path.open("rb+") as file:
        held = _try_to_hold(file)
        if not held and patience_s:
            print(f"aqtopo: {what}: waiting up to {patience_s:g} s for it", file=sys.stderr, flush=True)  # noqa: T201
        while not held and time.monotonic() < until:
            time.sleep(POLL_S)
            held = _try_to_hold(file)
        yield held


@contextmanager
def alone_together(
    path: Path, ranks: "Ranks", what: str, remedy: str, patience_s: float = 0.0
) -> Iterator[None]:
    """Hold a file through rank 0 while all ranks work on what belongs to it.

    Raises:
        BusyError: on all ranks: another process still holds it after `patience_s`, or it cannot be opened.
    """
    from aqtopo.checkpoint.ranks import refuse_together  # imports this module

    problems = []
    with ExitStack() as holds:
        if ranks.rank == 0:
            try:
                if not holds.enter_context(alone(path, patience_s, what)):
                    waited = f", and still does after {patience_s:g} s" if patience_s else ""
                    problems = [f"another process holds {path}{waited}"]
            except OSError as error:
                problems = [str(error)]
        refuse_together(ranks, what, problems, remedy, BusyError)
        yield


def _try_to_hold(file: IO[Any]) -> bool:
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
            f"{file.name} cannot be locked ({error.strerror}): see to it yourself that no two runs use it",
            stacklevel=5,
        )
