"""State of a run, read from its metrics.jsonl during or after the run."""

import statistics
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from aqtopo.distributed.deadlines import STACKS
from aqtopo.run_directory.log_file import (
    METRICS_FILE,
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
from aqtopo.text import duration_text

RESTART_REASON = "asked to stop and to be started again"
"""Stop reason of a run that its batch job starts again."""

FIRST_STEPS = 5
"""Steps after a resume over which the loss is averaged."""

RECENT_STEPS = 50
"""Steps over which the pace is measured."""

SILENT_AFTER_S = 120.0
"""A run is silent after this time without a log line, and after ten times its usual interval [s]."""

MAX_ERROR_CHARACTERS = 1000
"""Largest length of the error that is shown."""


@dataclass(frozen=True)
class RunState:
    """State of a run at one moment.

    Attributes:
        state: `not started`, `starting`, `running`, `silent for ...`, `waiting for its next start`, or
            `ended: ...`.
        total_steps: steps of the whole run; 0 before the first start.
        alpha: last logged barrier strengths [km-1] by parameter name: one value, or one per head.
        preferences: last logged parameters of the heads, by block and quantity.
        samples_per_s: samples of all ranks per second in the last step.
        left_s: time to the last step at the recent pace [s]; None if unknown.
        resume: verification line of the last resume.
        resumed_loss: mean of the first losses after the last resume; None without a resume or a step.
        loss_jump: text with the mean train loss after the last resume and the saved one; None without a jump.
        error: first line of the last error of any rank since the last start.
    """

    state: str
    step: int
    total_steps: int
    starts: int
    train_loss: float | None
    val_loss: float | None
    best_val_loss: float | None
    lrs: dict[str, float]
    alpha: dict[str, list[float]]
    preferences: dict[str, list[float]]
    samples_per_s: float | None
    left_s: float | None
    resume: str | None
    resumed_loss: float | None
    loss_jump: str | None
    error: str | None

    def verdict(self, success_below: float, failure_above: float) -> str | None:
        """Return SUCCESS, FAILURE or UNDECIDED for a resumed run; None without a resume."""
        if self.resume is None:
            return None
        if self.resumed_loss is not None and self.resumed_loss < success_below:
            return "SUCCESS"
        if self.resumed_loss is not None and self.resumed_loss > failure_above:
            return "FAILURE"
        return "UNDECIDED"


def read_run_state(run_dir: Path, now: datetime | None = None) -> RunState:
    """Read the state of a run at a time; None reads the clock.

    Raises:
        ValueError: the directory is missing, or a line of its metrics is invalid.
    """
    if not run_dir.is_dir():
        raise ValueError(
            f"there is no run directory {run_dir}. Name the folder in the run's training.run_dir."
        )
    summary = _Summary()
    for line in read_log(run_dir / METRICS_FILE):
        summary.add(line)
    update, start, pace = summary.update, summary.start, summary.pace
    total = 0 if start is None else start.total_steps
    return RunState(
        state=_state(summary, now or datetime.now(UTC)),
        step=summary.step,
        total_steps=total,
        starts=summary.starts,
        train_loss=None if update is None else update.train_loss,
        val_loss=summary.val_losses[-1] if summary.val_losses else None,
        best_val_loss=min(summary.val_losses, default=None),
        lrs={} if update is None else update.lr,
        alpha=summary.alpha,
        preferences=summary.preferences,
        samples_per_s=None if update is None else update.samples_per_s,
        left_s=max(total - summary.step, 0) * pace.step_s if pace and total else None,
        resume=None if summary.resume is None else summary.resume.line,
        resumed_loss=summary.resumed_loss,
        loss_jump=summary.loss_jump,
        error=_last_error(run_dir, None if start is None else _time(start)),
    )


class _Pace(NamedTuple):
    """Mean wall time between steps and between logged lines [s]."""

    step_s: float
    line_s: float


@dataclass
class _Summary:
    """Summary of the log lines so far: the log of a long run is too large to keep in memory."""

    step: int = 0
    last: Line | None = None
    # The last line of each kind:
    start: StartLine | None = None
    resume: ResumeLine | None = None
    update: StepLine | None = None
    loss_jump: str | None = None  # since the last resume
    starts: int = 0
    val_losses: list[float] = field(default_factory=list)
    alpha: dict[str, list[float]] = field(default_factory=dict)
    preferences: dict[str, list[float]] = field(default_factory=dict)
    # Steps since the last start or resume, and losses of the first steps since the last resume:
    recent: deque[StepLine] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))
    first_losses: list[float] = field(default_factory=list)

    def add(self, line: Line) -> None:
        """Add the next line."""
        self.last = line
        self.step = self.step if line.step is None else line.step
        self.alpha = line.alpha or self.alpha
        self.preferences = line.preferences or self.preferences
        match line:
            case StepLine():
                self.update = line
                self.recent.append(line)
                if len(self.first_losses) < FIRST_STEPS:
                    self.first_losses.append(line.train_loss)
            case ValidationLine():
                self.val_losses.append(line.val_loss)
            case ValidationResetLine():
                self.val_losses.clear()
            case StartLine():
                self.start = line
                self.starts += 1
                self.recent.clear()
            case ResumeLine():
                self.resume, self.loss_jump = line, None
                self.recent.clear()
                self.first_losses.clear()
            case LossAfterResumeLine(jump=True):
                self.loss_jump = f"train loss {line.running:.4g} after the resume, saved {line.saved:.4g}"

    @property
    def resumed_loss(self) -> float | None:
        """Mean of the first losses after the last resume."""
        return statistics.fmean(self.first_losses) if self.resume and self.first_losses else None

    @property
    def pace(self) -> _Pace | None:
        """Pace over the recent steps; None if there are too few or their times are inconsistent."""
        if len(self.recent) < 2:
            return None
        first, last = self.recent[0], self.recent[-1]
        passed, made = (_time(last) - _time(first)).total_seconds(), last.step - first.step
        return _Pace(passed / made, passed / (len(self.recent) - 1)) if made > 0 and passed >= 0 else None


def _state(summary: _Summary, now: datetime) -> str:
    last, pace = summary.last, summary.pace
    if last is None:
        return "not started"
    if isinstance(last, StopLine):
        restart = last.reason == RESTART_REASON
        return "waiting for its next start" if restart else f"ended: {last.reason}"
    silence = (now - _time(last)).total_seconds()
    if silence > max(SILENT_AFTER_S, 10 * pace.line_s if pace else 0.0):
        return f"silent for {duration_text(silence)}"
    return "starting" if isinstance(last, StartLine | ResumeLine) else "running"


def _time(line: Line) -> datetime:
    time = datetime.fromisoformat(line.time)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _last_error(run_dir: Path, since: datetime | None) -> str | None:
    """Return the first line of the newest stack dump since the last start."""
    found = (path for path in (run_dir / STACKS).glob("rank*.txt") if path.is_file())
    files = sorted(found, key=lambda path: path.stat().st_mtime)
    if not files or (since is not None and files[-1].stat().st_mtime < since.timestamp()):
        return None
    with files[-1].open(encoding="utf-8", errors="replace") as file:
        return file.readline(MAX_ERROR_CHARACTERS).rstrip("\n")
