"""How a run is doing, read from its directory while it runs or afterwards."""

import statistics
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from aqtopo.checkpoint.log_file import (
    METRICS_FILE,
    Line,
    ResumeLine,
    StartLine,
    StepLine,
    StopLine,
    ValidationLine,
    read_log,
)
from aqtopo.checkpoint.tags import last_tag
from aqtopo.training.stopping import Stop
from aqtopo.training.watchdog import STACKS

FIRST_STEPS = 5
"""Steps after a resume whose mean loss is judged."""

RECENT_STEPS = 50
"""Steps that the pace is measured over."""

SILENT_AFTER_S = 120.0
"""A run that has logged nothing for so long, and for ten times the usual, is called silent."""


@dataclass(frozen=True)
class RunState:
    """What can be said of a run at a moment.

    Attributes:
        state: `not started`, `starting`, `running`, `silent for ...`, `waiting for its next start`, or
            `ended: ...`.
        step: updates made, as far as it has been logged.
        total_steps: of the whole run; 0 before the first start.
        starts: how often it was started.
        saved: the last saved state that is complete; None before the first.
        train_loss: of the last step; None before the first.
        val_loss: of the last validation.
        best_val_loss: lowest so far.
        lrs: rate by group in the last step.
        alpha: barrier strengths [km-1] as last logged, by the parameter's name: one, or one a head.
        preferences: what each head prefers as last logged, by block and quantity.
        samples_per_s: over all ranks, in the last step.
        left_s: time to the last step at the recent pace [s]; None where it is not known.
        resume: the line in which the last resume says what it verified.
        resumed_loss: mean of the first losses after the last resume; None without a resume or a step.
        error: last error of any rank since the last start, its first lines.
    """

    state: str
    step: int
    total_steps: int
    starts: int
    saved: str | None
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
    error: str | None

    def verdict(self, success_below: float, failure_above: float) -> str | None:
        """SUCCESS, FAILURE or UNDECIDED for a resumed run; None for one that was never resumed."""
        if self.resume is None:
            return None
        if self.resumed_loss is not None and self.resumed_loss < success_below:
            return "SUCCESS"
        if self.resumed_loss is not None and self.resumed_loss > failure_above:
            return "FAILURE"
        return "UNDECIDED"


def read_state(run_dir: Path, now: datetime | None = None) -> RunState:
    """Read a run's state.

    Args:
        run_dir: the run directory.
        now: the present; None asks the clock.

    Raises:
        ValueError: there is no such directory, or a line of its metrics cannot be understood.
    """
    if not run_dir.is_dir():
        raise ValueError(f"there is no run directory {run_dir}. Give the one in the run's training.run_dir.")
    course = _Course()
    for line in read_log(run_dir / METRICS_FILE):
        course.take(line)
    update, start, pace = course.update, course.start, course.pace
    total = 0 if start is None else start.total_steps
    return RunState(
        state=_state(course, now or datetime.now(UTC)),
        step=course.step,
        total_steps=total,
        starts=course.starts,
        saved=None if (tag := last_tag(run_dir)) is None else tag.name,
        train_loss=None if update is None else update.train_loss,
        val_loss=course.val_losses[-1] if course.val_losses else None,
        best_val_loss=min(course.val_losses, default=None),
        lrs={} if update is None else update.lr,
        alpha=course.alpha,
        preferences=course.preferences,
        samples_per_s=None if update is None else update.samples_per_s,
        left_s=max(total - course.step, 0) * pace.step_s if pace and total else None,
        resume=None if course.resume is None else course.resume.line,
        resumed_loss=statistics.fmean(course.first_losses) if course.resume and course.first_losses else None,
        error=_last_error(run_dir, None if start is None else _time(start)),
    )


class _Pace(NamedTuple):
    """Mean seconds between updates, and between logged ones, with all that happens between them."""

    step_s: float
    line_s: float


@dataclass
class _Course:
    """What the lines have told so far: a long run has more of them than should be held at once.

    Attributes:
        step: updates made.
        last: the last line.
        start, resume, update: the last of its kind.
        starts: how many there were.
        val_losses: of every validation.
        alpha, preferences: as last logged.
        recent: the last updates since the last start or resume.
        first_losses: of the first updates since the last resume.
    """

    step: int = 0
    last: Line | None = None
    start: StartLine | None = None
    resume: ResumeLine | None = None
    update: StepLine | None = None
    starts: int = 0
    val_losses: list[float] = field(default_factory=list)
    alpha: dict[str, list[float]] = field(default_factory=dict)
    preferences: dict[str, list[float]] = field(default_factory=dict)
    recent: deque[StepLine] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))
    first_losses: list[float] = field(default_factory=list)

    def take(self, line: Line) -> None:
        """Note what the next line says."""
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
            case StartLine():
                self.start = line
                self.starts += 1
                self.recent.clear()
            case ResumeLine():
                self.resume = line
                self.recent.clear()
                self.first_losses.clear()

    @property
    def pace(self) -> _Pace | None:
        """Over the recent steps; None where they are too few, or edited so that they lead nowhere."""
        if len(self.recent) < 2:
            return None
        first, last = self.recent[0], self.recent[-1]
        passed, made = (_time(last) - _time(first)).total_seconds(), last.step - first.step
        return _Pace(passed / made, passed / (len(self.recent) - 1)) if made > 0 and passed >= 0 else None


def _state(course: _Course, now: datetime) -> str:
    last, pace = course.last, course.pace
    if last is None:
        return "not started"
    if isinstance(last, StopLine):
        restart = last.reason == Stop.RESTART.reason
        return "waiting for its next start" if restart else f"ended: {last.reason}"
    silence = (now - _time(last)).total_seconds()
    if silence > max(SILENT_AFTER_S, 10 * pace.line_s if pace else 0.0):
        return f"silent for {silence:.0f} s"
    return "starting" if isinstance(last, StartLine | ResumeLine) else "running"


def _time(line: Line) -> datetime:
    time = datetime.fromisoformat(line.time)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _last_error(run_dir: Path, since: datetime | None) -> str | None:
    """The newest file that a rank's watchdog left, if it is newer than the last start: its first line."""
    files = sorted((run_dir / STACKS).glob("rank*.txt"), key=lambda path: path.stat().st_mtime)
    if not files or (since is not None and files[-1].stat().st_mtime < since.timestamp()):
        return None
    return files[-1].read_text().partition("\n")[0]
