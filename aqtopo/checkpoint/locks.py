"""Locks on files: a killed process's hold ends with it, so that none is ever left behind."""

import fcntl
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from aqtopo.checkpoint.ranks import Ranks, refuse_together


@contextmanager
def shared(path: Path) -> Iterator[None]:
    """Keep others from holding a file for themselves alone."""
    with path.open() as file:
        _lock(file, fcntl.LOCK_SH)
        yield


@contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Hold a file for oneself alone; whether that could be had at once."""
    with path.open("rb+") as file:
        try:
            _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


@contextmanager
def alone_together(path: Path, ranks: Ranks, what: str, remedy: str) -> Iterator[None]:
    """Hold a file through rank 0 while all ranks work on what belongs to it.

    Raises:
        RefusedError: on all ranks: another process holds it, or it cannot be opened.
    """
    problems = []
    with ExitStack() as holds:
        if ranks.rank == 0:
            try:
                if not holds.enter_context(alone(path)):
                    problems = [f"another process holds {path}"]
            except OSError as error:
                problems = [str(error)]
        refuse_together(ranks, what, problems, remedy)
        yield


def _lock(file: IO[Any], mode: int) -> None:
    try:
        fcntl.flock(file, mode)
    except BlockingIOError:
        raise
    except OSError as error:  # a parallel file system mounted without locks
        warnings.warn(
            f"{file.name} cannot be locked ({error.strerror}): see to it yourself that no two runs use it",
            stacklevel=4,
        )
