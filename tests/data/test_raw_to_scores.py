"""End-to-end test from raw archives to scores; `prepare` is killed three times on the way."""

import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aqtopo.data import open_store
from tests.data.prepare.raw import day_files, lambert_grid, write_archive

YEARS = (2013, 2014, 2015)
DAYS = 6
"""Fewest days with enough hours for the regressions beside the scores."""
HOURS = 24 * DAYS * len(YEARS)


def make_raw(folder: Path) -> None:
    """Write archives of the days of each year: zip, tar and tar.gz in turn."""
    lat, lon = lambert_grid(24, 32, 120e3)
    folder.mkdir()
    for year in YEARS:
        for day, suffix in zip(range(1, DAYS + 1), itertools.cycle(("zip", "tar", "tar.gz"))):
            date = f"{year}-01-{day:02d}"
            archive = folder / f"CN-Reanalysis{date.replace('-', '')}.{suffix}"
            write_archive(archive, day_files(lat, lon, date))


def aqtopo(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "aqtopo", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def kill_when(there: Callable[[], bool], parts: Path, command: list[str]) -> dict[str, int]:
    """Start a command, kill it when `there()` is true; return the write time of each finished day."""
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not there():
        assert process.poll() is None, "the command ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1.0)  # its child processes need a moment to end
    return {path.name: path.stat().st_mtime_ns for path in parts.glob("20*.json")}


def run_config(store: Path, run_dir: Path, stage: Path) -> dict[str, Any]:
    return {
        "name": "raw",
        "data": {
            "store": str(store), "grid": [8, 12], "horizons": [12, 24], "train_years": [2013],
            "validation_years": [2014], "test_years": [2015], "time_stride_hours": 6, "workers": 1,
            "validation_stride_hours": 12, "test_stride_hours": 12, "stage": str(stage),
        },
        "model": {
            "patch": 2, "dim": 32, "depth": 2, "heads": 2, "regions": [2, 2], "dropout": 0.0,
            "drop_path": 0.0,
        },
        "optimizer": {"base_lr": 1e-3},
        "training": {
            "run_dir": str(run_dir), "epochs": 1, "nodes": 1, "ranks_per_node": 1, "validate_every": 4,
        },
        "deepspeed": {
            "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 1,
            "zero_optimization": {"stage": 2},
        },
    }  # fmt: skip


@pytest.mark.slow
def test_archives_to_scores_with_three_killed_preparations(tmp_path: Path) -> None:
    raw, store, run_dir = tmp_path / "raw", tmp_path / "caqra.zarr", tmp_path / "run"
    make_raw(raw)
    prepare = ["prepare", "caqra", raw, store, "--years", *YEARS, "--train-years", 2013, "--time-zone", "UTC"]
    prepare += ["--population", "none", "--grid", "8x12", "--lat", 27, 41, "--lon", 94, 114, "--workers", 2]
    command = [sys.executable, "-m", "aqtopo", *map(str, prepare)]
    parts = tmp_path / "caqra.zarr.parts"
    first = kill_when(lambda: len(list(parts.glob("20*.json"))) >= 2, parts, command)
    second = kill_when(lambda: len(list(parts.glob("20*.json"))) >= 5, parts, command)
    third = kill_when(lambda: any(parts.glob("store.*.tmp/fields/zarr.json")), parts, command)
    # The day after the last archive has a report too: the archive may hold its hour 0 as hour 24.
    assert len(first) < len(second) < len(third) == (DAYS + 1) * len(YEARS)
    assert first.items() <= second.items() <= third.items(), "a finished day was made again"
    assert any(parts.glob("store.*.tmp"))
    assert not store.exists(), "the command was to be killed while it assembled the store"
    prepared = aqtopo(*prepare)
    assert prepared.returncode == 0, prepared.stderr
    assert f"{HOURS} of 26280 hours" in prepared.stdout

    checked = aqtopo("data", "check", store, "--json")
    assert checked.returncode == 0, checked.stdout
    assert json.loads(checked.stdout)["faults"] == 0
    assert open_store(store).times.size == HOURS

    config, node = tmp_path / "config.json", tmp_path / "node"
    node.mkdir()
    config.write_text(json.dumps(run_config(store, run_dir, node)), encoding="utf-8")
    trained = aqtopo("train", config)
    assert trained.returncode == 0, trained.stderr
    assert f"{2 * DAYS} shards (" in trained.stderr  # of the training and validation years
    assert list(node.iterdir()) == []
    scored = aqtopo("evaluate", run_dir, "--json")
    assert scored.returncode == 0, scored.stderr
    scores = json.loads(scored.stdout)
    assert scores["years"] == [2015]
    assert len(scores["scores"]) == 12
