"""Errors that end a run, and the batch job's reaction to them.

The attribute `retry` of our own errors names the reaction; `retry_after` decides it for all other errors.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import NoReturn

SHOWN = 12
"""Problems that a message lists; the others are only counted."""

READ_ERRORS = (
    OSError, EOFError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError,
    AssertionError, MemoryError, SystemError, struct.error, zlib.error,
)  # fmt: skip
"""Errors that libraries raise on damaged files, besides those of their own classes."""


class Retry(StrEnum):
    """Reaction of a batch job to a failure; the value is the name of the file that slurm/job.sh reads."""

    NEVER = "never"
    """End: a user must correct something before the next start."""
    PERHAPS = "failed"
    """Requeue, up to a limit: the cause may be temporary, such as a disk, memory, node or network."""


class RefusedError(Exception):
    """Saved state that is damaged or does not fit the requested run.

    `aqtopo` ends with exit code 3, before it overwrites a file or makes an optimizer step.
    """

    retry = Retry.NEVER


class BusyError(RefusedError):
    """Run or saved state that another process still uses after the timeout."""

    retry = Retry.PERHAPS


class UnreadableDataError(ValueError):
    """Hours of the data store that cannot be read: damage, or failure of the disk or of a loader process."""

    retry = Retry.PERHAPS


class LostRankError(ConnectionError):
    """Ranks that did not start, do not answer, or have failed; the message names them."""

    retry = Retry.PERHAPS


def retry_after(error: BaseException) -> Retry:
    """Return the reaction to an error: its attribute `retry`, if it has one.

    Without it, a ValueError is bad input, and any other error (of a disk, of memory) may be temporary.
    """
    retry = getattr(error, "retry", None)
    if isinstance(retry, Retry):
        return retry
    return Retry.NEVER if isinstance(error, ValueError) else Retry.PERHAPS


@contextmanager
def file_named(path: Path) -> Iterator[None]:
    """Add the path to the errors of writing a file: Python leaves it out of those of `write` and `close`."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        if error.errno is None:  # of ndarray.tofile on a full disk
            raise OSError(f"{path}: {error}") from error
        raise OSError(error.errno, error.strerror, str(path)) from error


def raise_input_error(source: object, fact: str, remedy: str) -> NoReturn:
    """Raise the error for input from outside that cannot be used: which file, the fact, the remedy."""
    raise ValueError(f"{source} {fact}. {remedy}.")


def raise_problems(
    summary: str, problems: Sequence[str], remedy: str = "", kind: type[Exception] = RefusedError
) -> None:
    """Raise an error that lists the problems, if there are any.

    Raises:
        kind: `problems` is not empty.
    """
    if not problems:
        return
    shown = [f"  {problem}" for problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        shown.append(f"  ... and {len(problems) - SHOWN} more")
    raise kind("\n".join([f"{summary}:", *shown, *([remedy] if remedy else [])]))
