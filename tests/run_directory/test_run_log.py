import json
from pathlib import Path

import pytest
import torch

from aqtopo.run_directory.run_log import RunLog, peak_memory_gib


def test_events_are_json_lines_with_a_time(tmp_path: Path) -> None:
    log = RunLog(tmp_path, total_steps=10)
    log.event("step", step=1, lr={"head": 1e-3})
    log.event("stop", reason="all epochs done")
    records = [
        json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [record["event"] for record in records] == ["step", "stop"]
    assert records[0]["lr"] == {"head": 1e-3}
    assert all(record["time"].endswith("+00:00") for record in records)


def test_plain_lines_show_rate_and_time_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path, total_steps=2)
    log.progress(1, "loss 0.7")
    log.progress(2, "loss 0.6")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("step 1/2  loss 0.7")
    assert "steps/s" in lines[-1]
    assert lines[-1].endswith("00:00 left")


def test_other_ranks_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(None, total_steps=2)
    log.event("step", step=1)
    log.say("hello")
    log.progress(1, "loss 0.7")
    log.close()
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", "")


def test_peak_memory_of_a_cpu_process_counts_touched_pages() -> None:
    before = peak_memory_gib(torch.device("cpu"))
    ballast = torch.ones(2**28)  # 1 GiB
    assert peak_memory_gib(torch.device("cpu")) >= max(before, 1.0)
    assert ballast[0] == 1


def test_time_left_counts_steps_that_are_not_logged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 100.0])
    monkeypatch.setattr("aqtopo.run_directory.run_log.time.monotonic", lambda: next(clock))
    log = RunLog(tmp_path, total_steps=200)
    log.progress(50, "loss 0.7")
    log.progress(100, "loss 0.6")
    assert capsys.readouterr().err.splitlines()[-1].endswith("0.50 steps/s, 03:20 left")


def test_value_that_json_cannot_hold_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        RunLog(tmp_path, total_steps=1).event("step", grad_norm=float("inf"))


def test_events_are_not_appended_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match=r"metrics\.jsonl is a link"):
        RunLog(tmp_path, total_steps=2).event("start")
    assert not (tmp_path / "notes.txt").read_bytes()
