"""Each reason fails a fault test and is named."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aqtopo.checkpoint.tags import CHECKPOINTS, Tag
from aqtopo.config import CheckpointConfig
from aqtopo.fault_testing.ranks import file_phase
from aqtopo.fault_testing.result import PHASES, FaultTestResult, compare_losses, missing_tags

RENAMING = [sys.executable, "-c", "import os\nwhile True: os.rename('a.tmp', 'a'); os.rename('a', 'a.tmp')"]

GOOD = FaultTestResult(
    wanted=60,
    kills=72,
    phases=dict.fromkeys(("starting", *PHASES), 12),
    ranks={"0": 40, "1": 32},
    world_sizes=[2, 1, 3],
    resumes=60,
    unverified=0,
    lost_tags=[],
    steps=900,
    missing_steps=0,
    worst_loss=1e-6,
    different_tensors=30,
    worst_state=1e-5,
    other_differences=[],
    seconds=1.0,
)


def test_good_result_passes() -> None:
    assert GOOD.passed
    few = replace(GOOD, wanted=2, kills=2, resumes=2, phases={"training": 2}, ranks={"1": 2})
    assert few.passed  # few kills cannot hit all phases
    alone = replace(GOOD, world_sizes=[1], ranks={"0": 72}, different_tensors=0)
    assert alone.passed


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"resumes": 59}, "59 verified resumes after 60 kills"),
        ({"kills": 59}, "60 verified resumes after 60 kills"),
        ({"unverified": 1}, "1 starts continued without a verified resume"),
        ({"lost_tags": ["a: gone"]}, "a: gone"),
        ({"missing_steps": 1}, "1 steps of the reference are missing"),
        ({"steps": 0}, "0 were compared"),
        ({"worst_loss": 1e-3}, "a loss differs"),
        ({"worst_loss": float("nan")}, "a loss differs"),
        ({"worst_state": 0.1}, "weights or moments differ"),
        ({"worst_state": float("nan")}, "weights or moments differ"),
        ({"other_differences": ["step: 5 and 6"]}, "step: 5 and 6"),
        ({"world_sizes": [2, 2]}, "30 tensors are not bitwise equal to the reference's"),
        ({"ranks": {"1": 72}}, "rank 0 and another rank must be hit"),
        ({"ranks": {"0": 72}}, "rank 0 and another rank must be hit"),
        *(({"phases": dict.fromkeys(set(PHASES) - {p}, 9)}, f"no kill hit {p}") for p in PHASES),
    ],
)
def test_each_reason_fails_the_test_and_is_named(change: dict[str, Any], reason: str) -> None:
    result = replace(GOOD, **change)
    assert not result.passed
    assert [problem for problem in result.problems if reason in problem]


def tag(step: int, val_loss: float | None = None) -> Tag:
    return Tag(0, step, step, val_loss, 0.5)


def test_a_missing_newest_state_is_a_problem() -> None:
    policy = CheckpointConfig(keep_best=1, every_steps=3, keep_every_steps=3)
    known = [tag(3), tag(4, 0.5), tag(6), tag(8, 0.4)]
    assert not list(missing_tags(known, known, policy))
    assert list(missing_tags(known, known[:3], policy)) == [
        "epoch00-step000008-val0.4000: committed, but missing after a kill"
    ]


def test_only_states_that_the_policy_keeps_are_missing() -> None:
    policy = CheckpointConfig(keep_best=1, every_steps=3, keep_every_steps=3)
    known = [tag(3), tag(4, 0.5), tag(6), tag(8, 0.4)]
    assert not list(missing_tags(known, [tag(3), tag(6), tag(8, 0.4)], policy))  # 4 is the best no more
    assert len(list(missing_tags(known, [tag(6), tag(8, 0.4)], policy))) == 1  # 3 is every third's
    assert len(list(missing_tags(known, [tag(3), tag(6), tag(9)], policy))) == 1  # 8 was the best
    assert not list(missing_tags(known, [tag(3), tag(6), tag(9), tag(12, 0.3)], policy))


def write_losses(run_dir: Path, losses: dict[int, float]) -> None:
    run_dir.mkdir(parents=True)
    every = {"event": "step", "time": "2026-01-01T00:00:00+00:00", "epoch": 0, "lr": {}}
    lines = [json.dumps(every | {"step": s, "train_loss": loss}) for s, loss in losses.items()]
    (run_dir / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_missing_steps_are_counted(tmp_path: Path) -> None:
    write_losses(tmp_path / "reference", {1: 1.0, 2: 0.5, 3: 0.25})
    write_losses(tmp_path / "victim", {1: 1.0, 3: 0.2501})
    write_losses(tmp_path / "finished001", {1: 1.0})
    worst, compared, missing = compare_losses(tmp_path / "reference", tmp_path)
    assert (round(worst, 9), compared, missing) == (0.0004, 3, 1)


@pytest.mark.parametrize(
    ("place", "phase"),
    [
        ("a.universal.01234567.tmp/a", "converting"),
        ("a.tmp", "saving"),
        ("a.tmp/hashes-00001.json", "committing"),
        ("a.discarded", "pruning"),
        ("a.universal/a", None),
        ("a", None),
    ],
)
def test_temporary_files_show_the_phase(tmp_path: Path, place: str, phase: str | None) -> None:
    (tmp_path / CHECKPOINTS / place).mkdir(parents=True)
    assert file_phase(tmp_path) == phase


def test_a_state_that_is_renamed_under_the_look_ends_no_fault_test(tmp_path: Path) -> None:
    unfinished = tmp_path / CHECKPOINTS / "a.tmp"
    unfinished.mkdir(parents=True)
    renaming = subprocess.Popen(RENAMING, cwd=unfinished.parent)
    try:
        found = {file_phase(tmp_path) for _ in range(20_000)}
    finally:
        renaming.kill()
        renaming.wait()
    assert found <= {"saving", None}
