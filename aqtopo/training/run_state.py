"""How a run is doing, read from its directory while it runs or afterwards."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from aqtopo.checkpoint.log_file import (
    METRICS_FILE,
    Line,
    ResumeLine,
    StartLine,
    StepLine,
    StopLine,
    ValidationLine,
    of_kind,
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
"""A run that has logged nothing for so long, and for ten steps' time, is called silent."""


@dataclass(frozen=True)
class RunState:
    """What can be said of a run at a moment.

    Attributes:
        state: `not started`, `starting`, `running`, `silent for ...`, `waiting for its next start`, or
            `ended: ...`.
        step: updates made.
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
    lines = list(read_log(run_dir / METRICS_FILE))
    starts, steps, resumes = of_kind(lines, StartLine), of_kind(lines, StepLine), of_kind(lines, ResumeLine)
    losses = [line.val_loss for line in of_kind(lines, ValidationLine)]
    seconds = _seconds_a_step(of_kind(_since_the_last(lines, StartLine, ResumeLine), StepLine))
    last = steps[-1] if steps else None
    total = starts[-1].total_steps if starts else 0
    return RunState(
        state=_state(lines, seconds, now or datetime.now(UTC)),
        step=0 if last is None else last.step,
        total_steps=total,
        starts=len(starts),
        saved=None if (tag := last_tag(run_dir)) is None else tag.name,
        train_loss=None if last is None else last.train_loss,
        val_loss=losses[-1] if losses else None,
        best_val_loss=min(losses, default=None),
        lrs={} if last is None else last.lr,
        alpha=next((line.alpha for line in reversed(lines) if line.alpha), {}),
        preferences=next((line.preferences for line in reversed(lines) if line.preferences), {}),
        samples_per_s=None if last is None else last.samples_per_s,
        left_s=None if last is None or seconds is None else (total - last.step) * seconds,
        resume=resumes[-1].line if resumes else None,
        resumed_loss=_first_losses(_since_the_last(lines, ResumeLine)) if resumes else None,
        error=_last_error(run_dir, _time(starts[-1]) if starts else None),
    )


def _since_the_last(lines: Sequence[Line], *kinds: type[Line]) -> Sequence[Line]:
    """What came after the last line of these kinds; everything where there is none."""
    places = [i for i, line in enumerate(lines) if isinstance(line, kinds)]
    return lines[places[-1] + 1 :] if places else lines


def _state(lines: Sequence[Line], seconds: float | None, now: datetime) -> str:
    if not lines:
        return "not started"
    last = lines[-1]
    if isinstance(last, StopLine):
        restart = last.reason == Stop.RESTART.reason
        return "waiting for its next start" if restart else f"ended: {last.reason}"
    silence = (now - _time(last)).total_seconds()
    if silence > max(SILENT_AFTER_S, 10 * (seconds or 0.0)):
        return f"silent for {silence:.0f} s"
    return "running" if isinstance(last, StepLine | ValidationLine) else "starting"


def _time(line: Line) -> datetime:
    time = datetime.fromisoformat(line.time)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _seconds_a_step(steps: Sequence[StepLine]) -> float | None:
    """Mean over the recent steps, with all that happens between them."""
    recent = steps[-RECENT_STEPS:]
    if not recent or (made := recent[-1].step - recent[0].step) <= 0:
        return None
    return (_time(recent[-1]) - _time(recent[0])).total_seconds() / made


def _first_losses(lines: Sequence[Line]) -> float | None:
    losses = [line.train_loss for line in of_kind(lines, StepLine)][:FIRST_STEPS]
    return statistics.fmean(losses) if losses else None


def _last_error(run_dir: Path, since: datetime | None) -> str | None:
    """The newest file that a rank's watchdog left, if it is newer than the last start: its first line."""
    files = sorted((run_dir / STACKS).glob("rank*.txt"), key=lambda path: path.stat().st_mtime)
    if not files or (since is not None and files[-1].stat().st_mtime < since.timestamp()):
        return None
    return files[-1].read_text().partition("\n")[0]
