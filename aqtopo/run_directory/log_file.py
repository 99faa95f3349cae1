"""`metrics.jsonl`: what happened in a run, a line each, checked for what is used of its kind.

A resumed run goes on in the same file and may repeat steps that were lost with the process.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json

from aqtopo.config.record import Time, faults
from aqtopo.config.strict import NonNegative, Positive, Problem, Strict, raise_problems

METRICS_FILE = "metrics.jsonl"

ByName = dict[str, Annotated[list[float], Field(min_length=1)]]


class _Kind(Strict):
    """An event of whatever kind. Keys that nobody here reads are dropped: a log may have 300,000 lines."""

    model_config = ConfigDict(extra="ignore")

    event: str
    """Its kind."""


class Line(_Kind):
    """What any event may say."""

    time: Time
    """When it was."""
    step: NonNegative | None = None
    """Updates made before it."""
    alpha: ByName = Field(default_factory=dict)
    """Barrier strengths, by the parameter's name."""
    preferences: ByName = Field(default_factory=dict)
    """What the heads prefer, by block and quantity."""

    @model_validator(mode="after")
    def _placed(self) -> Self:
        if self.step is None and (self.alpha or self.preferences):
            raise_problems("event", [Problem(("step",), None, "must be given with alpha and preferences")])
        return self


class StepLine(Line):
    """An update."""

    step: Positive
    """Updates made, this one included."""
    epoch: NonNegative
    """From 0."""
    train_loss: float
    """Masked mean squared error on normalised targets."""
    lr: dict[str, float]
    """Learning rates by group."""
    samples_per_s: float | None = None
    """Over all ranks."""


class ValidationLine(Line):
    """A pass over the validation split."""

    step: NonNegative
    """The step after which it came."""
    epoch: NonNegative
    """From 0."""
    val_loss: float
    """As the training loss."""


class StartLine(Line):
    """A start."""

    total_steps: NonNegative = 0
    """Of the whole run."""
    world_size: Positive | None = None
    """Processes."""
    slurm: dict[str, Any] | None = None
    """Of the job, if it is one."""


class ResumeLine(Line):
    """A verified resume."""

    source: str
    """The saved state."""
    line: str
    """What was verified, in words."""
    seconds: dict[str, float]
    """What it took, by part."""


class LossAfterResumeLine(Line):
    """The first losses after a resume, beside those before."""

    running: float
    """Their mean."""
    saved: float
    """That of the saved state."""
    jump: bool
    """Whether they are too far apart."""


class StopLine(Line):
    """An end."""

    reason: str = "no reason given"
    """Why."""


_KINDS: dict[str, type[Line]] = {
    "step": StepLine,
    "validation": ValidationLine,
    "start": StartLine,
    "resume": ResumeLine,
    "loss_after_resume": LossAfterResumeLine,
    "stop": StopLine,
}


AnyLine = TypeVar("AnyLine", bound=Line)


def read_log(path: Path) -> Iterator[Line]:
    """The events in their order, none without a file; the last may be cut off, since a process writes there.

    Raises:
        ValueError: a line is not JSON, or lacks what its kind has.
        OSError: the file cannot be read.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, text in enumerate(file, start=1):
            if not (text.endswith(b"\n") or _is_json(text)):
                return  # the rest of the line may be there by now, and would be read as the next one
            if text.strip():
                yield _read(text, f"{path}, line {number}")


def of_kind(lines: Iterable[Line], kind: type[AnyLine]) -> list[AnyLine]:
    """The events of a kind."""
    return [line for line in lines if isinstance(line, kind)]


def _read(text: bytes, place: str) -> Line:
    model = Line
    try:
        model = _KINDS.get(_Kind.model_validate_json(text).event, Line)
        return model.model_validate_json(text)
    except ValidationError as error:
        found = faults(error, model, place)
    raise ValueError(f"{found}\nRemove that line, or take the file from a backup.")


def _is_json(text: bytes) -> bool:
    try:
        from_json(text)
    except ValueError:
        return False
    return True
