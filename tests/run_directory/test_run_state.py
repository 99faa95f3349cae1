import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from aqtopo.run_directory.run_state import RESTART_REASON, read_run_state

BEGIN = datetime(2026, 11, 22, tzinfo=UTC)


def write_run(run_dir: Path, *events: dict[str, Any], half_a_line: str = "") -> Path:
    """One event a second."""
    run_dir.mkdir(exist_ok=True)
    lines = [
        json.dumps({"time": (BEGIN + timedelta(seconds=i)).isoformat(), **event}) + "\n"
        for i, event in enumerate(events)
    ]
    (run_dir / "metrics.jsonl").write_text("".join(lines) + half_a_line, encoding="utf-8")
    return run_dir


def step(number: int, loss: float) -> dict[str, Any]:
    rates = {"head": 1e-4, "others": 2e-4}
    return {
        "event": "step",
        "step": number,
        "epoch": 0,
        "train_loss": loss,
        "lr": rates,
        "samples_per_s": 3.0,
    }


START = {"event": "start", "total_steps": 100}
RESUME = {
    "event": "resume",
    "step": 2,
    "source": "checkpoints/epoch00-step000002",
    "line": "resume verified: 91/91 parameters",
    "seconds": {},
}


def test_state_of_a_running_run(tmp_path: Path) -> None:
    validation = {"event": "validation", "step": 1, "epoch": 0, "val_loss": 0.5}
    run = write_run(tmp_path / "run", START, step(1, 2.0), validation, step(2, 1.5), half_a_line='{"event":')
    state = read_run_state(run, BEGIN + timedelta(seconds=4))
    assert (state.state, state.step, state.total_steps, state.starts) == ("running", 2, 100, 1)
    assert (state.train_loss, state.val_loss, state.samples_per_s) == (1.5, 0.5, 3.0)
    assert state.lrs == {"head": 1e-4, "others": 2e-4}
    assert state.left_s == pytest.approx(98 * 2.0)  # two seconds between the steps
    assert state.verdict(1.0, 3.0) is None


def test_jump_of_the_loss_is_that_after_the_last_resume(tmp_path: Path) -> None:
    jump, none = (
        {"event": "loss_after_resume", "step": 22, "running": running, "saved": 1.5, "jump": running > 1.875}
        for running in (2.0, 1.6)
    )
    found = [
        read_run_state(write_run(tmp_path / "run", START, *events), BEGIN).loss_jump
        for events in ([RESUME], [RESUME, jump], [RESUME, none], [RESUME, jump, START, RESUME])
    ]
    assert found == [None, "train loss 2 after the resume, saved 1.5", None, None]


def test_best_loss_is_that_of_the_present_data(tmp_path: Path) -> None:
    first, second = ({"event": "validation", "step": 1, "epoch": 0, "val_loss": loss} for loss in (0.1, 0.5))
    reset = {"event": "validation_reset", "step": 1, "saved_best": 0.1}
    run = write_run(tmp_path / "run", START, step(1, 2.0), first, START, reset, RESUME)
    assert read_run_state(run, BEGIN).best_val_loss is None
    run = write_run(tmp_path / "run", START, step(1, 2.0), first, START, reset, RESUME, second)
    assert read_run_state(run, BEGIN).best_val_loss == 0.5


def test_states_silent_and_ended(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", START, step(1, 2.0))
    assert read_run_state(run, BEGIN + timedelta(hours=1)).state == "silent for 59 min 59 s"
    run = write_run(tmp_path / "run", START, step(1, 2.0), {"event": "stop", "reason": "all epochs done"})
    assert read_run_state(run, BEGIN + timedelta(hours=1)).state == "ended: all epochs done"


def test_run_that_stops_for_a_restart_has_not_ended(tmp_path: Path) -> None:
    stop = {"event": "stop", "reason": RESTART_REASON}
    run = write_run(tmp_path / "run", START, step(1, 2.0), stop)
    assert read_run_state(run, BEGIN + timedelta(hours=9)).state == "waiting for its next start"
    run = write_run(tmp_path / "run", START, step(1, 2.0), stop, START, step(2, 2.0))
    assert read_run_state(run, BEGIN + timedelta(seconds=5)).state == "running"


def test_repeated_steps_have_no_pace(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", START, step(2, 2.0), step(2, 2.0))
    assert read_run_state(run, BEGIN).left_s is None


def test_decreasing_times_have_no_pace(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", START, step(1, 2.0) | {"time": "2026-11-23T00:00:00"}, step(2, 2.0))
    assert read_run_state(run, BEGIN).left_s is None


def test_time_left_is_unknown_without_total_steps(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"event": "start"}, step(1, 2.0), step(2, 2.0))
    assert read_run_state(run, BEGIN).left_s is None


def test_run_that_logs_few_steps_is_not_silent(tmp_path: Path) -> None:
    few = [START, *(step(number, 2.0) | {"time": time} for number, time in ((40, "00:00"), (80, "05:00")))]
    for event in few[1:]:
        event["time"] = f"2026-11-22T00:{event['time']}+00:00"
    run = write_run(tmp_path / "run", *few)
    assert read_run_state(run, BEGIN + timedelta(minutes=10)).state == "running"
    run = write_run(tmp_path / "run", *few, {"event": "stop", "step": 100, "reason": "all epochs done"})
    state = read_run_state(run, BEGIN + timedelta(minutes=10))
    assert (state.step, state.left_s) == (100, 0.0)


def test_run_is_running_after_the_loss_comparison(tmp_path: Path) -> None:
    compared = {"event": "loss_after_resume", "step": 3, "running": 1.0, "saved": 1.0, "jump": False}
    run = write_run(tmp_path / "run", START, RESUME, START, compared)
    assert read_run_state(run, BEGIN).state == "running"


def test_times_without_a_zone_are_utc(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", START, step(1, 2.0) | {"time": "2026-11-22T00:00:01"})
    assert read_run_state(run, BEGIN + timedelta(seconds=2)).state == "running"


def test_directory_without_metrics_has_not_started(tmp_path: Path) -> None:
    state = read_run_state(tmp_path)
    assert (state.state, state.step, state.train_loss, state.left_s) == ("not started", 0, None, None)


@pytest.mark.parametrize(
    ("losses", "verdict"),
    [([], "UNDECIDED"), ([0.7, 0.8], "SUCCESS"), ([3.8] * 4, "FAILURE"), ([1.5], "UNDECIDED")],
)
def test_verdict_depends_on_the_first_losses_after_a_resume(
    tmp_path: Path, losses: list[float], verdict: str
) -> None:
    before = [START, step(1, 5.0), step(2, 5.0), RESUME, START]
    later = [step(3 + i, loss) for i, loss in enumerate(losses)]
    state = read_run_state(write_run(tmp_path / "run", *before, *later), BEGIN)
    assert state.resume == "resume verified: 91/91 parameters"
    assert state.verdict(1.0, 3.0) == verdict


def test_errors_before_the_last_start_are_ignored(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", START, step(1, 2.0))
    for rank, seconds in ((0, -10.0), (3, 10.0)):
        file = run / "stacks" / f"rank{rank:05d}.txt"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"rank {rank} failed\nTraceback", encoding="utf-8")
        os.utime(file, times=(BEGIN.timestamp() + seconds,) * 2)
    assert read_run_state(run, BEGIN).error == "rank 3 failed"
    (run / "stacks" / "rank00003.txt").unlink()
    assert read_run_state(run, BEGIN).error is None


def test_missing_directory_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no run directory .*nothing.*training\.run_dir"):
        read_run_state(tmp_path / "nothing")
