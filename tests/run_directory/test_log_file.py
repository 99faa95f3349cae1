import json
import re
from pathlib import Path

import pytest

from aqtopo.run_directory.log_file import METRICS_FILE, StepLine, StopLine, of_kind, read_log
from aqtopo.run_directory.run_log import RunLog

TIME = "2026-01-01T00:00:00+00:00"
STEP = {"event": "step", "time": TIME, "step": 1, "epoch": 0, "train_loss": 2.0, "lr": {"head": 1e-3}}


def test_logged_events_are_read_back(tmp_path: Path) -> None:
    log = RunLog(tmp_path, total_steps=1)
    log.event("step", step=1, epoch=0, train_loss=2.0, lr={"head": 1e-3}, grad_norm=0.5)
    log.event("an event of a later version", facts=3)
    log.event("stop", step=1, reason="all epochs done")
    lines = list(read_log(tmp_path / METRICS_FILE))
    assert [line.event for line in lines] == ["step", "an event of a later version", "stop"]
    (step,), (stop,) = of_kind(lines, StepLine), of_kind(lines, StopLine)
    assert (step.step, step.train_loss, step.lr) == (1, 2.0, {"head": 1e-3})
    assert stop.reason == "all epochs done"


def test_missing_file_has_no_events(tmp_path: Path) -> None:
    assert list(read_log(tmp_path / METRICS_FILE)) == []


def test_incomplete_last_line_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    path.write_text(json.dumps(STEP) + '\n{"event": "step", "st', encoding="utf-8")
    assert len(list(read_log(path))) == 1
    path.write_text(json.dumps(STEP), encoding="utf-8")  # all but the end of the line
    assert len(list(read_log(path))) == 1


@pytest.mark.parametrize("rest", [b"\0" * 200, b"\xe9", b"[" * 100_000, b"9" * 5000 + b"."])
def test_remains_of_a_crash_at_the_end_are_skipped(tmp_path: Path, rest: bytes) -> None:
    path = tmp_path / METRICS_FILE
    path.write_bytes(json.dumps(STEP).encode() + b"\r\n" + rest)
    assert len(list(read_log(path))) == 1


def test_folder_instead_of_a_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).mkdir()
    with pytest.raises(IsADirectoryError, match=METRICS_FILE):
        list(read_log(tmp_path / METRICS_FILE))


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_line_in_another_encoding_is_refused_by_number(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / METRICS_FILE
    path.write_bytes(
        (json.dumps(STEP | {"lr": {"t\xeate": 1e-3}}, ensure_ascii=False) + "\n").encode(encoding)
    )
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        list(read_log(path))


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("not json", " is not JSON"),
        ("5", " does not hold one JSON object"),
        ("{}", ": event: missing"),
        ('{"event": "stop"}', ": time: missing"),
        ('{"event": "stop", "time": "late"}', ': time = "late": must be a time'),
        (json.dumps({"event": "step", "time": TIME, "step": 2}), ": epoch: missing"),
        (json.dumps(STEP | {"step": "2"}), ': step = "2": must be'),
        (json.dumps({"event": "validation", "time": TIME, "step": 2, "epoch": 0}), ": val_loss: missing"),
        (
            json.dumps({"event": "resume", "time": TIME, "line": "l", "source": "s", "seconds": 3}),
            ": seconds = 3: ",
        ),
        (json.dumps({"event": "loss_after_resume", "time": TIME, "step": 2}), ": running: missing"),
        (
            json.dumps({"event": "start", "time": TIME, "alpha": {"blocks.0.attn.alpha": [2.0]}}),
            ": step = null: must be given with",
        ),
        (
            json.dumps({"event": "start", "time": TIME, "step": 0, "alpha": {"blocks.0.attn.alpha": []}}),
            ': alpha."blocks.0.attn.alpha" = []: must hold at least 1 item',
        ),
    ],
)
def test_line_without_a_required_field_is_refused_by_number(tmp_path: Path, line: str, fault: str) -> None:
    path = tmp_path / METRICS_FILE
    path.write_text(f"{json.dumps(STEP)}\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(f"{path}, line 2{fault}")) as caught:
        list(read_log(path))
    assert "Remove that line, or restore the file from a backup" in str(caught.value)
