"""`metrics.jsonl`: events of a run, one per line, validated by kind.

A resumed run appends to the same file and may repeat steps that were lost with a killed process.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json

from aqtopo.config.record import Time, faults
from aqtopo.config.strict import NonNegative, Positive, Problem, Strict, raise_contradictions

METRICS_FILE = "metrics.jsonl"

ByName = dict[str, Annotated[list[float], Field(min_length=1)]]


class _Kind(Strict):
    """Event of any kind. Unused keys are dropped, because a log may have 300,000 lines in memory."""

    model_config = ConfigDict(extra="ignore")

    event: str
    """Kind of event."""


class Line(_Kind):
    """Fields that every kind of event may have."""

    time: Time
    """Time of the event."""
    step: NonNegative | None = None
    """Updates made before the event."""
    alpha: ByName = Field(default_factory=dict)
    """Barrier strengths by parameter name."""
    preferences: ByName = Field(default_factory=dict)
    """Learned attention preferences of the heads, by block and quantity."""

    @model_validator(mode="after")
    def _placed(self) -> Self:
        if self.step is None and (self.alpha or self.preferences):
            raise_contradictions(
                "event", [Problem(("step",), None, "must be given with alpha and preferences")]
            )
        return self


class StepLine(Line):
    """One optimizer update."""

    step: Positive
    """Updates made, including this one."""
    epoch: NonNegative
    """Epoch, from 0."""
    train_loss: float
    """Masked mean squared error on normalised targets."""
    lr: dict[str, float]
    """Learning rate by group."""
    samples_per_s: float | None = None
    """Throughput over all ranks."""


class ValidationLine(Line):
    """One pass over the validation split."""

    step: NonNegative
    """Updates made before the validation."""
    epoch: NonNegative
    """Epoch, from 0."""
    val_loss: float
    """Masked mean squared error on normalised targets."""


class StartLine(Line):
    """Start of a run or of a resumed run."""

    total_steps: NonNegative = 0
    """Updates in the whole run."""
    world_size: Positive | None = None
    """Number of processes."""
    slurm: dict[str, Any] | None = None
    """Facts about the Slurm job, if there is one."""


class ResumeLine(Line):
    """One verified resume."""

    source: str
    """Path of the saved state."""
    line: str
    """Text line with the verification result."""
    seconds: dict[str, float]
    """Seconds by part of the resume."""


class LossAfterResumeLine(Line):
    """Comparison of the first losses after a resume with those before the save."""

    running: float
    """Mean training loss after the resume."""
    saved: float
    """Mean training loss in the saved state."""
    jump: bool
    """True if the loss has jumped."""


class ValidationResetLine(Line):
    """Resume on other data, with which the earlier validation losses cannot be compared."""


class StopLine(Line):
    """End of a run."""

    reason: str = "no reason given"
    """Reason for the end."""


_KINDS: dict[str, type[Line]] = {
    "step": StepLine,
    "validation": ValidationLine,
    "start": StartLine,
    "resume": ResumeLine,
    "loss_after_resume": LossAfterResumeLine,
    "validation_reset": ValidationResetLine,
    "stop": StopLine,
}


AnyLine = TypeVar("AnyLine", bound=Line)


def read_log(path: Path) -> Iterator[Line]:
    """Yield the events in order; none if the file is missing. An incomplete last line is skipped.

    Raises:
        ValueError: a line is not JSON, or lacks a field of its kind.
        OSError: the file cannot be read.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, text in enumerate(file, start=1):
            if not (text.endswith(b"\n") or _is_json(text)):
                return  # a process may be writing the rest of this line
            if text.strip():
                yield _read(text, f"{path}, line {number}")


def of_kind(lines: Iterable[Line], kind: type[AnyLine]) -> list[AnyLine]:
    """Return the events of one kind."""
    return [line for line in lines if isinstance(line, kind)]


def _read(text: bytes, place: str) -> Line:
    model = Line
    try:
        model = _KINDS.get(_Kind.model_validate_json(text).event, Line)
        return model.model_validate_json(text)
    except ValidationError as error:
        found = faults(error, model, place)
    raise ValueError(f"{found}\nRemove that line, or restore the file from a backup.")


def _is_json(text: bytes) -> bool:
    try:
        from_json(text)
    except ValueError:
        return False
    return True
