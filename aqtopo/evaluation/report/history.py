"""What happened in training, read back from `metrics.jsonl`.

A resumed run appends to the same file and may repeat steps that were lost with the process, so the last line
about a step is the one that counts.
"""

from dataclasses import dataclass, field
from pathlib import Path

from aqtopo.run_directory.log_file import (
    Line,
    LossAfterResumeLine,
    ResumeLine,
    StartLine,
    StepLine,
    StopLine,
    ValidationLine,
    read_log,
)


@dataclass(frozen=True)
class Step:
    """One optimizer update.

    Attributes:
        step: updates done, this one included.
        epoch: the epoch it belongs to, from 0.
        train_loss: masked mean squared error on normalised targets.
        lrs: learning rate by group.
        samples_per_s: training samples a second over all ranks, or None where it was not written.
    """

    step: int
    epoch: int
    train_loss: float
    lrs: dict[str, float]
    samples_per_s: float | None


@dataclass(frozen=True)
class Validation:
    """One pass over the validation split: its loss, and the step after which it came."""

    step: int
    epoch: int
    val_loss: float


@dataclass(frozen=True)
class Happening:
    """A start, a resume, the losses after it, or an end: when [UTC], at which step, and what, in words."""

    time: str
    step: int | None
    text: str


@dataclass(frozen=True)
class History:
    """Steps and validations in the order of training.

    Attributes:
        steps: one entry an update, steps increasing.
        validations: one entry a validation, steps increasing.
        starts: how many times training was started; above 1 the run was resumed.
        happenings: starts, resumes and ends, as they came.
        alphas: by step what training logged of alpha, by the parameter's name: one number, or one a head.
        preferences: by step what training logged of the heads' preferences, by block and quantity.
    """

    steps: tuple[Step, ...]
    validations: tuple[Validation, ...]
    starts: int
    happenings: tuple[Happening, ...] = ()
    alphas: dict[int, dict[str, list[float]]] = field(default_factory=dict)
    preferences: dict[int, dict[str, list[float]]] = field(default_factory=dict)

    @property
    def best(self) -> Validation | None:
        """The validation with the lowest loss, the earliest of equals; None before the first validation."""
        return min(self.validations, key=lambda validation: validation.val_loss, default=None)


def read_history(path: Path) -> History:
    """Read a run's `metrics.jsonl`.

    Raises:
        ValueError: the file is missing, a line of it cannot be understood, or no step has been logged.
    """
    if not path.is_file():
        raise ValueError(
            f"{path} is missing, so there are no learning curves to draw. "
            "Give the directory that `aqtopo train` wrote."
        )
    steps: dict[int, Step] = {}
    validations: dict[int, Validation] = {}
    starts = 0
    happenings: list[Happening] = []
    alphas: dict[int, dict[str, list[float]]] = {}
    preferences: dict[int, dict[str, list[float]]] = {}
    for line in read_log(path):
        if isinstance(line, StepLine):
            steps[line.step] = Step(line.step, line.epoch, line.train_loss, line.lr, line.samples_per_s)
        elif isinstance(line, ValidationLine):
            validations[line.step] = Validation(line.step, line.epoch, line.val_loss)
        starts += isinstance(line, StartLine)
        if line.step is not None and line.alpha:
            alphas[line.step] = line.alpha
        if line.step is not None and line.preferences:
            preferences[line.step] = line.preferences
        if told := _told(line):
            happenings.append(Happening(_spoken(line.time), line.step, told))
    if not steps:
        raise ValueError(f"{path} holds no training step yet. Wait for the run's first step.")
    return History(
        tuple(steps[step] for step in sorted(steps)),
        tuple(validations[step] for step in sorted(validations)),
        starts,
        tuple(happenings),
        dict(sorted(alphas.items())),
        dict(sorted(preferences.items())),
    )


def _told(line: Line) -> str | None:
    """What an event says, in words; None for what is no happening."""
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


def _spoken(time: str) -> str:
    return time[:19].replace("T", " ")
