"""A run that has all that a report shows: an untrained network, scored, with an invented history."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aqtopo.checkpoint import load_run
from aqtopo.config import RunConfig
from aqtopo.evaluation.evaluate import evaluate
from aqtopo.evaluation.score_file import write_scores

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


def write_metrics(path: Path, events: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(event) + "\n" for event in events))


@pytest.fixture
def finish(save_untrained: Callable[[RunConfig], Path]) -> Callable[[RunConfig], Path]:
    """Make the run directory of a config as `aqtopo train` and `aqtopo evaluate` leave it."""

    def make(config: RunConfig) -> Path:
        run_dir = save_untrained(config)
        (run_dir / "run.json").write_text(json.dumps(RUN_FACTS))
        steps = [step_line(step, 2.0 / step) for step in range(1, 8)]
        write_metrics(run_dir / "metrics.jsonl", [{"event": "start"}, *steps, validation_line(7, 0.5)])
        write_scores(evaluate(load_run(run_dir)).scores, run_dir)
        return run_dir

    return make


@pytest.fixture
def finished_run(tiny_config: Callable[..., RunConfig], finish: Callable[[RunConfig], Path]) -> Path:
    """The run directory of `tiny_config()` with everything a report needs."""
    return finish(tiny_config())
