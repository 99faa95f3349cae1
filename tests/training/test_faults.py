"""Faults in the data: `aqtopo train` ends and names store, shard and time, or masks and counts the values."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from aqtopo.config import RunConfig
from aqtopo.data import write_statistics, write_store
from tests.events import events

pytestmark = pytest.mark.slow

SHARD = Path("fields", "c", "2", "0", "0", "0")
"""2016-01-03, which training reads; neither the probe batch nor validation does."""


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:500])


def flip_a_byte(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[300] ^= 1
    path.write_bytes(raw)


def stall(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)  # opening it waits for a writer, who never comes


LOST = r"unreadable fields at 2016-01-03T\d\d: the shard fields/c/2/0/0/0 "
FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (cut_short, LOST + "has no valid index at its end"),
    "flipped": (flip_a_byte, LOST + "has a wrong checksum"),
    "vanished": (Path.unlink, LOST + "is missing"),
    "stalled": (stall, r"did not answer for 2 s: .*fields/c/2/0/0/0"),
    "killed": (
        Path.exists,
        r"a loader process ended unexpectedly .* before it had read the micro-batch of 201\d-01-\d\dT",
    ),
}
"""Damage to the shard, and the message that ends the run."""


def config_of(tiny_config: Callable[..., RunConfig], folder: Path, name: str) -> RunConfig:
    return tiny_config(
        data={
            "store": str(folder / f"{name}.zarr"),
            "workers": int(name == "killed"),
            "time_stride_hours": 12,
            "read_deadline_s": 2 if name == "stalled" else 60,
        },
        training={
            "run_dir": str(folder / name), "epochs": 2000 if name == "killed" else 1, "validate_every": 24,
        },
        deepspeed={"gradient_accumulation_steps": 1},
    )  # fmt: skip


def run_all(configs: dict[str, RunConfig], folder: Path) -> dict[str, tuple[str, str]]:
    """Exit code and what was said, in one line, by name."""
    files = {name: folder / f"{name}.json" for name in configs}
    for name, config in configs.items():
        files[name].write_text(config.to_json(), encoding="utf-8")
    program = Path(__file__).with_name("faulty_runs.py")
    subprocess.run([sys.executable, program, *files.values()], check=True, timeout=1500)
    return {
        name: (
            path.with_suffix(".code").read_text(encoding="utf-8"),
            " ".join(path.with_suffix(".out").read_text(encoding="utf-8").split()),
        )
        for name, path in files.items()
    }


def test_every_fault_of_the_data_ends_a_run_in_words_or_is_masked_and_counted(
    tiny_config: Callable[..., RunConfig], tiny_store: Path, tiny_dataset: xr.Dataset, tmp_path: Path
) -> None:
    for name, (damage, _) in FAULTS.items():
        shutil.copytree(tiny_store, tmp_path / f"{name}.zarr")
        damage(tmp_path / f"{name}.zarr" / SHARD)
    tiny_dataset["fields"][48:72, 3, 2:4, 5:7] = np.nan  # rh on 2016-01-03
    tiny_dataset["fields"][72:96, 10] = np.inf  # pm25, an input and a target, a day later
    write_store(tiny_dataset, tmp_path / "missing.zarr")
    write_statistics(tmp_path / "missing.zarr", [2016])

    names = (*FAULTS, "missing")
    ended = run_all({name: config_of(tiny_config, tmp_path, name) for name in names}, tmp_path)
    for name, (_, message) in FAULTS.items():
        code, said = ended[name]
        assert code in ("1", "2"), (name, code, said)
        assert re.search(message, said), (name, said)
        assert f"{name}.zarr" in said, (name, said)
        assert "Traceback" not in said, (name, said)

    code, said = ended["missing"]
    assert code == "0", said
    steps = events(tmp_path / "missing", "step")
    # Two times of each day with four horizons start a sample: 4 cells of rh are filled, and all of pm25.
    assert sum(step["filled"] for step in steps) == 2 * 4 * (4 + 8 * 16)
    assert all(np.isfinite(step["train_loss"]) for step in steps)


def test_a_gradient_that_overflows_in_fp16_is_skipped_and_logged_without_a_norm(
    tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    scaling = {"enabled": True, "initial_scale_power": 24, "hysteresis": 1}
    config = tiny_config(
        data={"time_stride_hours": 12},
        training={"run_dir": str(tmp_path / "overflowing"), "epochs": 1, "validate_every": 24},
        deepspeed={"fp16": scaling, "gradient_accumulation_steps": 1},
    )
    code, said = run_all({"overflowing": config}, tmp_path)["overflowing"]
    assert code == "0", said
    norms = [event["grad_norm"] for event in events(tmp_path / "overflowing", "step")]
    assert norms[0] is None
    assert norms[-1] > 0  # by then the scale of 2^24 has been halved often enough
