import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aqtopo.cli.main import app


def write_resumed_run(run_dir: Path, loss: float, jump: bool = False) -> Path:
    moment = "2026-11-22T02:00:00+00:00"
    events = [
        {"event": "start", "step": 0, "total_steps": 100, "alpha": {"blocks.0.attn.alpha": [1.987, 2.0151]}},
        {
            "event": "validation",
            "step": 6,
            "epoch": 0,
            "val_loss": 0.5,
            "preferences": {"blocks.0 travel [h]": [0.0, 21.468]},
        },
        {"event": "resume", "source": "a", "line": "resume verified: [91/91] parameters", "seconds": {}},
        {
            "event": "step",
            "step": 7,
            "epoch": 0,
            "train_loss": loss,
            "lr": {"head": 5e-5},
            "samples_per_s": 12.0,
        },
        {"event": "loss_after_resume", "step": 7, "running": loss, "saved": 0.5, "jump": jump},
        {"event": "stop", "reason": "all epochs done"},
    ]
    run_dir.mkdir()
    lines = [json.dumps({"time": moment, **event}) for event in events]
    (run_dir / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return run_dir


def test_output_contains_the_documented_strings(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["watch", str(write_resumed_run(tmp_path / "run", 0.7))])
    assert result.exit_code == 0, result.output
    for text in ("ended: all epochs done", "7 of 100", "head 5.000e-05", "SUCCESS", "[91/91]"):
        assert text in result.stdout
    assert "blocks.0 1.987 to 2.015" in result.stdout
    assert re.search(r"blocks\.0 travel \[h\] .*0  21\.5", result.stdout)


def test_jump_of_the_loss_after_a_resume_is_a_warning(tmp_path: Path) -> None:
    shown = {
        jump: CliRunner().invoke(app, ["watch", str(write_resumed_run(tmp_path / str(jump), 0.7, jump))])
        for jump in (False, True)
    }
    assert [shown[jump].exit_code for jump in (False, True)] == [0, 0]
    assert re.search(r"warning .*the loss has jumped: train loss 0\.7 after", shown[True].stdout)
    assert "warning" not in shown[False].stdout


def test_invalid_log_line_is_named(tmp_path: Path) -> None:
    path = write_resumed_run(tmp_path / "run", 0.7) / "metrics.jsonl"
    path.write_text(
        path.read_text(encoding="utf-8").replace('"val_loss": 0.5', '"val_loss": "low"'), encoding="utf-8"
    )
    with pytest.raises(ValueError, match=r'metrics\.jsonl, line 2: val_loss = "low"(.|\n)*Remove that line'):
        CliRunner().invoke(app, ["watch", str(path.parent)], catch_exceptions=False)


def test_failed_resume_gives_exit_code_1(tmp_path: Path) -> None:
    run = str(write_resumed_run(tmp_path / "run", 3.8))
    assert CliRunner().invoke(app, ["watch", run]).exit_code == 1
    result = CliRunner().invoke(app, ["watch", run, "--failure-above", "4", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["verdict"] == "UNDECIDED"


def test_swapped_thresholds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--failure-above 0\.5 is below --success-below 1"):
        CliRunner().invoke(app, ["watch", str(tmp_path), "--failure-above", "0.5"], catch_exceptions=False)
