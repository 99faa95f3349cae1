"""What ends a run from outside of its own rank: a saved state that is refused, other ranks that are lost."""

from collections.abc import Sequence

SHOWN = 12
"""Reasons that a message spells out; further ones are counted."""


class RefusedError(Exception):
    """A saved state is damaged, or continuing from it would not be the run that was asked for.

    `aqtopo` ends with exit code 3; nothing has been overwritten and no optimizer step was made.
    """


class LostRankError(ConnectionError):
    """Other ranks did not arrive, do not answer any more, or have failed; the message names them."""


def refuse(what: str, problems: Sequence[str], remedy: str = "") -> None:
    """Raise if there are problems, and name them.

    Raises:
        RefusedError: `problems` is not empty.
    """
    if not problems:
        return
    shown = [f"  {problem}" for problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        shown.append(f"  ... and {len(problems) - SHOWN} more")
    raise RefusedError("\n".join([f"{what}:", *shown, *([remedy] if remedy else [])]))
