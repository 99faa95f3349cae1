"""Deadlines of the phases that all ranks go through together."""

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
    "first step": 1800,  # compiles the backward kernels
    "step": 600,
    "validation": 3600,
    "save": 1800,
}
"""Deadline by phase [s]; AQTOPO_DEADLINES="step=60,data=30" overrides some."""

STACKS = "stacks"
"""Folder of the run directory for the stack dumps of ranks that miss a deadline."""

SCALE_WITH_WORK = ("data", "first step", "step", "validation")
"""Phases whose work per rank grows if the run has fewer ranks."""


def read_deadlines(environ: Mapping[str, str] = os.environ, work: float = 1.0) -> dict[str, float]:
    """Return the deadlines by phase, with overrides from the environment.

    `work` is a rank's work per step, relative to that at the configured world size. It lengthens the
    deadlines that the environment does not set.

    Raises:
        ValueError: the variable names an unknown phase or an invalid time.
    """
    deadlines = {
        name: seconds * (max(work, 1.0) if name in SCALE_WITH_WORK else 1.0)
        for name, seconds in DEADLINES_S.items()
    }
    for part in filter(None, environ.get(VARIABLE, "").split(",")):
        name, _, text = part.strip().partition("=")
        if name not in deadlines or not text.replace(".", "", 1).isdigit() or float(text) <= 0:
            raise ValueError(
                f"{VARIABLE}: {part.strip()!r} must be a phase and its deadline in seconds, such as step=60. "
                f"The phases are {', '.join(deadlines)}."
            )
        deadlines[name] = float(text)
    return deadlines
