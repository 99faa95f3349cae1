"""Texts of messages and tables: lists of names, durations."""

import math
from collections.abc import Sequence


def abridged(names: Sequence[str], most: int = 16) -> str:
    """Join the first names of a list for a message and count the rest."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def duration_text(seconds: float) -> str:
    """Format a duration: `0.35 s`, `12 s`, `1 min 30 s`, `2 h 05 min`."""
    if seconds < 59.5 or not math.isfinite(seconds):
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"
