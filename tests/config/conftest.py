"""A small, valid configuration to start from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Document = dict[str, Any]


@pytest.fixture
def document() -> Document:
    return {
        "name": "small",
        "data": {
            "store": "data/small.zarr",
            "grid": [16, 32],
            "train_years": [2013, 2014],
            "validation_years": [2017],
            "test_years": [2018],
        },
        "model": {"patch": 2, "dim": 64, "depth": 2, "heads": 4, "regions": [4, 4]},
        "optimizer": {"base_lr": 1e-3},
        "schedule": {"interval": "step", "warmup_steps": 10, "eta_min": 1e-6},
        "training": {"run_dir": "runs/small", "epochs": 2, "nodes": 1, "ranks_per_node": 2},
        "deepspeed": {"train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": 2}},
    }


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[object], str]:
    """Write a value, or text as it is, to `run.json` in the working directory; returns that name."""
    monkeypatch.chdir(tmp_path)

    def write_run(content: object) -> str:
        text = content if isinstance(content, str) else json.dumps(content)
        Path("run.json").write_text(text, encoding="utf-8")
        return "run.json"

    return write_run
