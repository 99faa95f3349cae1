"""A run that has all that a report shows: an untrained network, scored, with an invented history."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from aqtopo.ablation.results_file import FORMAT_VERSION
from aqtopo.config import RunConfig
from aqtopo.evaluation.evaluate import evaluate
from aqtopo.evaluation.points import FORECASTS
from aqtopo.evaluation.results import write_scores
from aqtopo.inference.load import load_run
from aqtopo.run_directory.log_file import ValidationLine
from aqtopo.variables import HORIZONS_H, TARGET_VARIABLES

RUN_FACTS = {
    "name": "tiny",
    "started": "2026-11-21T20:15:00+00:00",
    "world_size": 2,
    "launcher": "torchrun",
    "commit": "f00dfeed-dirty",
    "device": "cpu",
    "python": "3.11.7",
    "versions": {"aqtopo": "0.1.0", "torch": "2.13.0", "triton": None},
}


def step_line(step: int, loss: float, epoch: int = 0) -> dict[str, Any]:
    lrs = {"vit_blocks": 1e-5 / step, "head": 5e-5 / step}
    return {
        "event": "step",
        "step": step,
        "epoch": epoch,
        "train_loss": loss,
        "lr": lrs,
        "samples_per_s": 3.5,
    }


def validation_line(step: int, loss: float, epoch: int = 0) -> dict[str, Any]:
    return {"event": "validation", "step": step, "epoch": epoch, "val_loss": loss, "best": True}


def logged_validation(step: int, loss: float) -> ValidationLine:
    return ValidationLine.model_construct(step=step, epoch=0, val_loss=loss)


def write_metrics(path: Path, events: list[dict[str, Any]]) -> None:
    time = {"time": "2026-11-21T20:15:00.000+00:00"}
    path.write_text("".join(json.dumps(time | event) + "\n" for event in events), encoding="utf-8")


def station_sums(stations: int) -> xr.Dataset:
    """Return invented sums of `aqtopo evaluate --stations`; only PM2.5 and ozone are observed."""
    rng = np.random.default_rng(0)
    per_pair = ("station", "pollutant", "horizon")
    count = np.full((stations, len(TARGET_VARIABLES), len(HORIZONS_H)), 50)
    count[:, [name not in ("pm25", "o3") for name in TARGET_VARIABLES]] = 0
    errors = 50.0 * rng.uniform(0.5, 1.5, (len(FORECASTS), *count.shape)) * (count > 0)
    return xr.Dataset(
        dict.fromkeys(("squared", "absolute", "anomaly_squared"), (("forecast", *per_pair), errors))
        | {"signed": (("forecast", *per_pair), errors - 50.0)}
        | {"count": (per_pair, count), "weight": (per_pair, 1.0 * count), "left_out": (per_pair, 0 * count)},
        coords={
            "forecast": list(FORECASTS),
            "station": [f"<b>{number}</b>" for number in range(stations)],
            "lat": ("station", rng.uniform(21.0, 47.0, stations)),
            "lon": ("station", rng.uniform(80.0, 133.0, stations)),
            "pollutant": list(TARGET_VARIABLES),
            "horizon": list(HORIZONS_H),
        },
        attrs={"stations_outside_the_grid": ["far", "farther"], "stations_beside_masked_cells": []},
    )


@pytest.fixture
def finish(save_untrained: Callable[[RunConfig], Path]) -> Callable[[RunConfig], Path]:
    """Make the run directory of a config as `aqtopo train` and `aqtopo evaluate` leave it."""

    def make(config: RunConfig) -> Path:
        run_dir = save_untrained(config)
        (run_dir / "run.json").write_text(json.dumps(RUN_FACTS), encoding="utf-8")
        steps = [step_line(step, 2.0 / step) for step in range(1, 8)]
        write_metrics(run_dir / "metrics.jsonl", [{"event": "start"}, *steps, validation_line(7, 0.5)])
        write_scores(evaluate(load_run(run_dir)).scores, run_dir)
        return run_dir

    return make


@pytest.fixture
def finished_run(tiny_config: Callable[..., RunConfig], finish: Callable[[RunConfig], Path]) -> Path:
    """The run directory of `tiny_config()` with everything a report needs."""
    return finish(tiny_config())


def change(score: str, value: float, days: float, *, shown: bool) -> dict[str, Any]:
    """A change with an interval over days `days` to both sides, and none over seeds."""
    return {
        "contrast": "wind_order=true (not false)",
        "score": score,
        "change": value,
        "days_low": value - days,
        "days_high": value + days,
        "seeds_low": None,
        "seeds_high": None,
        "shown": shown,
    }


@pytest.fixture
def ablation(tmp_path: Path) -> Path:
    """A folder as `aqtopo ablate` leaves it: two variants, two seeds, invented figures."""
    variants = [
        {
            "variant": f"wind_order={level}",
            "folder": f"wind_order-{level}",
            "val_loss": [0.2, 0.4],
            "overall_rmse": [0.5, 0.6],
            "alpha": alpha,
        }
        for level, alpha in (("true", [2.1, None]), ("false", [None, None]))
    ]
    content = {
        "format_version": FORMAT_VERSION,
        "run": "tiny",
        "config_digest": "0" * 64,
        "store": "data/tiny.zarr",
        "source": "aqtopo simulator, not observations",
        "simulated": True,
        "commit": "0123456789abcdef",
        "factors": {"model.wind_order": [True, False]},
        "seeds": [0, 1],
        "starts": "first weights: 43 tensors equal; DIFFERENT: head.0.weight",
        "variants": variants,
        "changes": [
            change("all", -2.0, 1.0, shown=True),
            change("all plateau", 0.5, 1.0, shown=False),
            change("pm25 12 h", -3.0, 1.0, shown=True),
            change("pm25 24 h", 0.0, 1.0, shown=False),
            change("val_loss", 1.0, 0.0, shown=False),
        ],
        "created": "2026-11-22T06:13:11+00:00",
        "machine": {"platform": "Linux", "cores": 2},
        "versions": {"aqtopo": "0.1.0", "triton": None},
    }
    folder = tmp_path / "ablation"
    for variant in ("wind_order-true", "wind_order-false"):
        for seed in (0, 1):
            run_dir = folder / "runs" / variant / f"seed{seed}"
            run_dir.mkdir(parents=True)
            steps = [step_line(step, 2.0 / step) for step in range(1, 8)]
            write_metrics(run_dir / "metrics.jsonl", [*steps, validation_line(7, 0.5)])
    (folder / "results.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
