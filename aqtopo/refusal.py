"""What ends a run, and whether starting it again could help.

Errors of our own say so themselves, by their attribute `retry`; `retry_after` knows it of all others.
"""

from collections.abc import Sequence
from enum import StrEnum

SHOWN = 12
"""Reasons that a message spells out; further ones are counted."""


class Retry(StrEnum):
    """What a batch job does after a failure; its value is the file by which slurm/job.sh is told."""

    NEVER = "never"
    """Ends: the next start would fail in the same way, until a user has put something right."""
    PERHAPS = "failed"
    """Is queued again: disk, memory, node or network may be better then. Ends after a few such failures."""


class RefusedError(Exception):
    """A saved state is damaged, or continuing from it would not be the run that was asked for.

    `aqtopo` ends with exit code 3; nothing has been overwritten and no optimizer step was made.
    """

    retry = Retry.NEVER


class BusyError(RefusedError):
    """Another process works on the same run or saved state, and still did when patience was at its end."""

    retry = Retry.PERHAPS


class UnreadableDataError(ValueError):
    """Hours of the data store cannot be read now: damaged, or the disk or a loader process failed."""

    retry = Retry.PERHAPS


class LostRankError(ConnectionError):
    """Other ranks did not arrive, do not answer any more, or have failed; the message names them."""

    retry = Retry.PERHAPS


def retry_after(error: BaseException) -> Retry:
    """Whether the same start may go well another time: the error's own word, if it has one.

    Of the others, a ValueError is bad input; disks, memory and what else may fail are not always the same.
    """
    word = getattr(error, "retry", None)
    if isinstance(word, Retry):
        return word
    return Retry.NEVER if isinstance(error, ValueError) else Retry.PERHAPS


def raise_problems(
    summary: str, problems: Sequence[str], remedy: str = "", kind: type[RefusedError] = RefusedError
) -> None:
    """Raise an error that lists the problems, if there are any.

    Raises:
        RefusedError: `problems` is not empty; the error is of class `kind`.
    """
    if not problems:
        return
    shown = [f"  {problem}" for problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        shown.append(f"  ... and {len(problems) - SHOWN} more")
    raise kind("\n".join([f"{summary}:", *shown, *([remedy] if remedy else [])]))
