"""Test of the example in docs/data.md: run it, then train on its store. Its latitude descends."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from aqtopo.data import open_store
from tests.events import events

ROOT = Path(__file__).parents[1]
EXAMPLE = re.search(
    r"<!-- example -->\n```python\n(.*?)```",
    (ROOT / "docs" / "data.md").read_text(encoding="utf-8"),
    re.DOTALL,
)
LEVELS = {
    "u10": 3.0, "v10": 1.0, "t2m": 283.0, "sp": 9.8e4, "r2": 70.0, "pm2p5": 12e-9, "pm10": 20e-9,
    "so2": 3e-9, "no2": 15e-9, "co": 180e-9, "go3": 60e-9,
}  # fmt: skip


def write_sources(folder: Path) -> None:
    """Write five days of each of three years over Europe, 24 x 40 cells, latitude from north to south."""
    lat, lon = np.arange(64.0, 40.0, -1.0), np.arange(-10.0, 30.0, 1.0)
    hours = np.arange(120).astype("timedelta64[h]")
    time = np.concatenate([np.datetime64(f"{year}-06-01", "ns") + hours for year in (2019, 2020, 2021)])
    phase = np.arange(time.size)[:, None, None] / 7 + lat[:, None] / 5 + lon / 9
    dims = ("time", "latitude", "longitude")
    fields = {
        name: (dims, (level * (1 + 0.2 * np.sin(phase))).astype("f4")) for name, level in LEVELS.items()
    }
    for name, middle, swing in (("t2m", 283.0, 8.0), ("sp", 9.8e4, 2e3)):
        fields[name] = (dims, (middle + swing * np.sin(phase)).astype("f4"))
    xr.Dataset(fields, {"time": time, "latitude": lat, "longitude": lon}).to_netcdf(folder / "cams_europe.nc")
    alps = 2500.0 * np.exp(-((lat[:, None] - 46.0) ** 2) / 4 - (lon - 10.0) ** 2 / 20)
    xr.Dataset(
        {"elevation": (dims[1:], np.where(alps > 1, alps, np.nan)), "population": (dims[1:], alps * 0 + 120)}
    ).to_netcdf(folder / "ground.nc")


@pytest.mark.slow
def test_the_example_makes_a_store_that_a_run_can_train_on(tmp_path: Path) -> None:
    assert EXAMPLE
    write_sources(tmp_path)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}

    def run(*command: str) -> str:
        ended = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    run("-c", EXAMPLE[1])
    store = open_store(tmp_path / "europe.zarr")
    assert store.lat[0] > store.lat[-1]
    assert store.mean["co"] == pytest.approx(180.0, rel=0.05)
    assert json.loads(run("-m", "aqtopo", "data", "check", "europe.zarr", "--json"))["faults"] == 0
    config = {
        "name": "europe",
        "data": {
            "store": "europe.zarr", "grid": [24, 40], "horizons": [12, 24], "train_years": [2019],
            "validation_years": [2020], "test_years": [2021], "time_stride_hours": 12,
            "validation_stride_hours": 24, "test_stride_hours": 24, "workers": 1,
        },
        "model": {"patch": 4, "dim": 32, "depth": 2, "heads": 2, "regions": [3, 5]},
        "optimizer": {"base_lr": 1e-3},
        "training": {"run_dir": "run", "epochs": 2, "nodes": 1, "ranks_per_node": 1, "validate_every": 4},
        "deepspeed": {
            "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2,
            "zero_optimization": {"stage": 2},
        },
    }  # fmt: skip
    (tmp_path / "europe.json").write_text(json.dumps(config), encoding="utf-8")
    run("-m", "aqtopo", "train", "europe.json")
    losses = [step["train_loss"] for step in events(tmp_path / "run", "step")]
    assert len(losses) == 8
    assert np.isfinite(losses).all()
    assert events(tmp_path / "run", "stop")[-1]["reason"] == "all epochs done"
