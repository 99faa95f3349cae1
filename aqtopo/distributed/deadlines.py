"""How long ranks may take for what they do together, by phase."""

import os
from collections.abc import Mapping

VARIABLE = "AQTOPO_DEADLINES"
DEADLINES_S: Mapping[str, float] = {
    "connect": 600,
    "preflight": 300,
    "lock": 600,
    "stage": 1700,
    "resume": 1800,
    "engine": 600,
    "sanity validation": 1800,  # compiles the kernels
    "data": 600,
    "first step": 1800,  # compiles those of the backward pass
    "step": 600,
    "validation": 3600,
    "save": 1800,
}
"""Longest time in each phase [s]; AQTOPO_DEADLINES="step=60,data=30" changes some."""

SHARED_AMONG_RANKS = ("data", "first step", "step", "validation")
"""Phases whose work is the run's, so that fewer ranks have more of it each."""


def read_deadlines(environ: Mapping[str, str] = os.environ, work: float = 1.0) -> dict[str, float]:
    """The deadlines, with what the environment changes of them.

    Args:
        environ: the environment.
        work: how many times as much a rank has to do in a step as it was configured to; it lengthens what is
            not given by the environment.

    Raises:
        ValueError: the variable names no phase or gives no time.
    """
    deadlines = {
        name: seconds * (max(work, 1.0) if name in SHARED_AMONG_RANKS else 1.0)
        for name, seconds in DEADLINES_S.items()
    }
    for part in filter(None, environ.get(VARIABLE, "").split(",")):
        name, _, text = part.strip().partition("=")
        if name not in deadlines or not text.replace(".", "", 1).isdigit() or float(text) <= 0:
            raise ValueError(
                f"{VARIABLE}: {part.strip()!r} is no phase with its deadline in seconds, such as step=60. "
                f"The phases are {', '.join(deadlines)}."
            )
        deadlines[name] = float(text)
    return deadlines
