"""Training history, read from `metrics.jsonl` and from saved states.

A resumed run appends to the same file and may repeat steps, so the last line of a step is used.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from aqtopo.checkpoint import list_tags
from aqtopo.checkpoint.manifest import WEIGHTS_FILE
from aqtopo.checkpoint.tags import read_lock
from aqtopo.config import RunConfig
from aqtopo.model.attention import ALPHA
from aqtopo.refusal import READ_ERRORS
from aqtopo.report.images import FloatArray
from aqtopo.run_directory.log_file import (
    Line,
    LossAfterResumeLine,
    ResumeLine,
    StartLine,
    StepLine,
    StopLine,
    ValidationLine,
    ValidationResetLine,
    read_log,
)
from aqtopo.safe_files import is_special


@dataclass(frozen=True)
class RunEvent:
    """A start, a resume, the losses after it, or an end: time [UTC], step and text."""

    time: str
    step: int | None
    text: str


@dataclass(frozen=True)
class History:
    """Steps and validations in the order of training.

    Attributes:
        steps: one per update, steps increasing.
        validations: one per validation on the run's present data, steps increasing.
        starts: number of starts; above 1 the run was resumed.
        events: starts, resumes and ends in the order of the log.
        alphas: logged alpha by step and parameter name: one value, or one per head.
        preferences: logged parameters of the local bias by step, and by block and quantity.
    """

    steps: tuple[StepLine, ...]
    validations: tuple[ValidationLine, ...]
    starts: int
    events: tuple[RunEvent, ...] = ()
    alphas: dict[int, dict[str, list[float]]] = field(default_factory=dict)
    preferences: dict[int, dict[str, list[float]]] = field(default_factory=dict)

    @property
    def best(self) -> ValidationLine | None:
        """Validation with the lowest loss, the earliest of equals; None without a validation."""
        return min(self.validations, key=lambda validation: validation.val_loss, default=None)


def read_history(path: Path) -> History:
    """Read a run's `metrics.jsonl`.

    Raises:
        ValueError: the file is missing, one of its lines is invalid, or no step has been logged.
    """
    if not path.is_file():
        raise ValueError(
            f"{path} is missing, so no learning curves can be drawn. "
            "Give the directory that `aqtopo train` wrote."
        )
    steps: dict[int, StepLine] = {}
    validations: dict[int, ValidationLine] = {}
    starts = 0
    events: list[RunEvent] = []
    alphas: dict[int, dict[str, list[float]]] = {}
    preferences: dict[int, dict[str, list[float]]] = {}
    for line in read_log(path):
        if isinstance(line, StepLine):
            steps[line.step] = line
        elif isinstance(line, ValidationLine):
            validations[line.step] = line
        elif isinstance(line, ValidationResetLine):
            validations.clear()
        starts += isinstance(line, StartLine)
        if line.step is not None and line.alpha:
            alphas[line.step] = line.alpha
        if line.step is not None and line.preferences:
            preferences[line.step] = line.preferences
        if text := _event_text(line):
            events.append(RunEvent(line.time[:19].replace("T", " "), line.step, text))
    if not steps:
        raise ValueError(f"{path} has no training step yet. Wait for the run's first step.")
    return History(
        tuple(steps[step] for step in sorted(steps)),
        tuple(validations[step] for step in sorted(validations)),
        starts,
        tuple(events),
        dict(sorted(alphas.items())),
        dict(sorted(preferences.items())),
    )


def _event_text(line: Line) -> str | None:
    """Return the text of an event; None for other lines."""
    match line:
        case StartLine(world_size=world, slurm=slurm):
            job = (slurm or {}).get("job")
            on = "" if world is None else f" on {world} process{'es' if world > 1 else ''}"
            return f"training starts{on}{f', Slurm job {job}' if job else ''}"
        case ResumeLine():
            return f"from {Path(line.source).name}: {line.line} ({sum(line.seconds.values()):.1f} s)"
        case LossAfterResumeLine():
            verdict = "they jump" if line.jump else "no jump"
            return f"mean of the losses since: {line.running:.4f}, before {line.saved:.4f}; {verdict}"
        case StopLine():
            return f"training ends: {line.reason}"
    return None


@dataclass(frozen=True)
class Alphas:
    """Alpha [km-1] by block: (S, n) at S steps, from step 0; n is 1 if all heads share one value."""

    steps: tuple[int, ...]
    by_block: dict[str, FloatArray]


def read_alphas(run_dir: Path, config: RunConfig, history: History) -> Alphas | None:
    """Read alpha at the start and at every validation; None for a model without it.

    Without logged values, those of the saved states are used: they are few, and rounded in bfloat16.

    Raises:
        ValueError: the weights of a state cannot be read.
    """
    points = {
        step: {name: np.array(values) for name, values in logged.items()}
        for step, logged in history.alphas.items()
    }
    if not points:  # of two states at one step the later one is used
        points = {tag.step: _read_alpha(tag.folder(run_dir)) for tag in list_tags(run_dir)}
    steps = sorted(points)
    if not steps or not points[steps[0]]:
        return None
    names = sorted(points[steps[0]])
    if steps[0] > 0:  # the initial value was not logged
        points[0] = {name: np.full_like(points[steps[0]][name], config.model.alpha) for name in names}
        steps = [0, *steps]
    by_block = {
        name.removesuffix(ALPHA).replace("blocks.", "block "): np.stack([points[s][name] for s in steps])
        for name in names
    }
    return Alphas(tuple(steps), by_block)


def _read_alpha(folder: Path) -> dict[str, FloatArray]:
    """Read alpha from one saved state, without its other weights."""
    path = folder / WEIGHTS_FILE
    try:
        if is_special(path):
            raise OSError("it is a pipe or a device")
        with read_lock(folder), safe_open(path, framework="np") as weights:
            names = [name for name in weights.keys() if name.endswith(ALPHA)]  # noqa: SIM118
            return {name: weights.get_tensor(name).astype(np.float64) for name in names}
    except (SafetensorError, *READ_ERRORS) as error:
        raise ValueError(
            f"cannot read alpha from {path}: {error}. Remove that state, or try again if a "
            "running training has just removed it."
        ) from error


def alpha_sentence(alphas: Alphas) -> str:
    """Return initial and final alpha as text."""
    parts = []
    for block, values in alphas.by_block.items():
        last = values[-1]
        end = f"{last[0]:.3f}" if len(last) == 1 else f"{last.min():.3f} to {last.max():.3f} by head"
        parts.append(f"{block} from {values[0, 0]:.3f} to {end}")
    return f"{'; '.join(parts)} km\N{SUPERSCRIPT MINUS}\N{SUPERSCRIPT ONE}, at step {alphas.steps[-1]:,}."


def preference_rows(history: History) -> list[tuple[str, str, str]]:
    """Return block and quantity, first and last logged values of the local bias, one value per head."""
    if not history.preferences:
        return []
    logged = list(history.preferences.values())
    first, last = logged[0], logged[-1]
    return [(name.replace("blocks.", "block "), _by_head(first[name]), _by_head(last[name])) for name in last]


def _by_head(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)
