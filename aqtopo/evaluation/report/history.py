"""What happened in training, read back from `metrics.jsonl`.

A resumed run appends to the same file and may repeat steps that were lost with the process, so the last line
about a step is the one that counts.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_TOLD = ("start", "resume", "loss_after_resume", "stop")


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
    for event in _events(path):
        if event["event"] == "step":
            steps[event["step"]] = _step(event)
        elif event["event"] == "validation":
            validations[event["step"]] = Validation(event["step"], event["epoch"], event["val_loss"])
        elif event["event"] == "start":
            starts += 1
        if event.get("alpha"):
            alphas[event["step"]] = event["alpha"]
        if event.get("preferences"):
            preferences[event["step"]] = event["preferences"]
        if event["event"] in _TOLD:
            happenings.append(Happening(_spoken(event.get("time")), event.get("step"), _told(event)))
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


def _step(event: dict[str, Any]) -> Step:
    return Step(
        event["step"], event["epoch"], event["train_loss"], dict(event["lr"]), event.get("samples_per_s")
    )


def _told(event: dict[str, Any]) -> str:
    """What an event says, in words."""
    kind = event["event"]
    if kind == "start":
        world = event.get("world_size")
        job = (event.get("slurm") or {}).get("job")
        on = "" if world is None else f" on {world} process{'es' if world > 1 else ''}"
        return f"training starts{on}{f', Slurm job {job}' if job else ''}"
    if kind == "resume":
        source = Path(event["source"]).name
        return f"from {source}: {event['line']} ({sum(event['seconds'].values()):.1f} s)"
    if kind == "loss_after_resume":
        verdict = "they jump" if event["jump"] else "no jump"
        return f"mean of the losses since: {event['running']:.4f}, before {event['saved']:.4f}; {verdict}"
    return f"training ends: {event.get('reason', 'no reason given')}"


def _spoken(time: str | None) -> str:
    return "" if time is None else time[:19].replace("T", " ")


def _events(path: Path) -> Iterator[dict[str, Any]]:
    """Parse the lines; the last one may be cut off, since a running or killed process writes the file."""
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                return
            raise ValueError(
                f"{path}, line {number}: {line[:60]!r} is not JSON ({error.msg}). "
                "Remove that line, or take the file from a backup."
            ) from error
