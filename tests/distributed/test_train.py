"""`aqtopo train` with real processes, started in every way that users start it."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from safetensors.torch import load_file

from aqtopo.checkpoint import list_tags
from aqtopo.checkpoint.manifest import WEIGHTS_FILE
from aqtopo.config import RunConfig
from aqtopo.data import write_statistics, write_store
from tests.curves import mlflow_curves, tensorboard_curves, wandb_curves

TinyConfig = Callable[..., RunConfig]

pytestmark = pytest.mark.slow


def settings(ranks: int, accumulation: int, **changes: Any) -> dict[str, Any]:
    """A run of 4 samples a step whatever the ranks, long enough to validate twice an epoch."""
    return {
        "training": {"ranks_per_node": ranks, "epochs": 1, "validate_every": 12 * accumulation} | changes,
        "model": {"dropout": 0.1, "drop_path": 0.1},
        "optimizer": {"base_lr": 1e-2},
        "deepspeed": {
            "train_micro_batch_size_per_gpu": 4 // (ranks * accumulation),
            "gradient_accumulation_steps": accumulation,
        },
    }


@pytest.fixture
def larger_store(tiny_dataset: xr.Dataset, tmp_path: Path) -> Path:
    """The tiny store with four cells in place of each, large enough for the local path."""
    lat, lon = np.linspace(20.0, 48.0, 16), np.linspace(74.0, 134.0, 32)
    larger = tiny_dataset.reindex(lat=lat, lon=lon, method="nearest")
    for place, field in ((2, np.repeat(lat[:, None], 32, 1)), (3, np.repeat(lon[None], 16, 0))):
        larger["static"][place] = field
    write_store(larger, tmp_path / "larger.zarr")
    write_statistics(tmp_path / "larger.zarr", [2016])
    return tmp_path / "larger.zarr"


def test_losses_do_not_depend_on_launcher_or_world_size(
    tiny_config: TinyConfig, larger_store: Path, run_training: Callable[..., Any], tmp_path: Path
) -> None:
    """With all inputs and the local path."""
    every = {
        "data": {
            "store": str(larger_store),
            "grid": [16, 32],
            "forcings": ["cos_local_time", "sin_local_time", "insolation"],
            "history_hours": [6],
            "weather_at_horizons": ["u", "rh"],
        },
        "model": {"dropout": 0.1, "drop_path": 0.1, "local_path": True, "local_width": 8},
    }
    runs = {}
    for launcher, ranks, accumulation in (("alone", 1, 2), ("deepspeed", 2, 1), ("torchrun", 4, 1)):
        run_dir = str(tmp_path / launcher)
        own = {"run_dir": run_dir, "area_weighted_loss": True, "validate_every": 11 * accumulation}
        config = tiny_config(**(settings(ranks, accumulation, **own) | every))
        finished = run_training(config, launcher, ranks=ranks)
        assert finished.code == 0, finished.output
        runs[launcher] = finished

    alone = runs["alone"]
    validations = [event["val_loss"] for event in alone.events("validation")]
    assert len(alone.losses()) == 23
    assert validations[-1] != pytest.approx(validations[0], rel=5e-4)  # the steps change the weights
    for other in ("deepspeed", "torchrun"):
        assert runs[other].losses() == pytest.approx(alone.losses(), rel=2e-5)
        assert [event["val_loss"] for event in runs[other].events("validation")] == pytest.approx(
            validations, rel=2e-5
        )


def test_bfloat16_has_float32_master_weights_and_reductions(
    tiny_config: TinyConfig, run_training: Callable[..., Any], tmp_path: Path
) -> None:
    """Steps of alpha are a fortieth of the distance of bfloat16 numbers near 2, which is 2^-7."""
    alphas, losses = [], []
    for ranks, accumulation, deepspeed in (
        (1, 1, {}),
        (1, 1, {"bf16": {"enabled": True}}),
        (2, 1, {"bf16": {"enabled": True}, "communication_data_type": "fp32"}),
    ):
        run_dir = str(tmp_path / f"{ranks}{len(deepspeed)}")
        changes = settings(ranks, accumulation, run_dir=run_dir)
        changes["deepspeed"] |= deepspeed
        changes["optimizer"]["base_lr"] = 2e-3
        finished = run_training(tiny_config(**changes), "deepspeed" if ranks > 1 else "alone", ranks=ranks)
        assert finished.code == 0, finished.output
        validations = finished.events("validation")
        alphas.append([event["alpha"]["blocks.0.attn.alpha"][0] for event in validations])
        losses.append([event["val_loss"] for event in validations])
    fp32, *bf16 = alphas
    assert 0 < abs(fp32[-1] - 2) < 2**-8
    for course, loss in zip(bf16, losses[1:], strict=True):
        assert course == pytest.approx(fp32, abs=1e-3)
        assert course[-1] != 2
        assert loss == pytest.approx(losses[0], rel=1e-2)


def test_a_run_leaves_metrics_versions_and_its_best_states(
    tiny_config: TinyConfig, run_training: Callable[..., Any]
) -> None:
    config = tiny_config(**settings(2, 1, validate_every=4), checkpoint={"keep_best": 2}, data={"workers": 1})
    finished = run_training(config, "torchrun")
    assert finished.code == 0, finished.output

    steps = finished.events("step")
    assert [event["step"] for event in steps] == list(range(1, 25))
    for key in ("train_loss", "grad_norm", "samples_per_s", "memory_gib"):
        assert all(event[key] > 0 for event in steps), key
    assert set(steps[0]["lr"]) == {"vit_blocks", "wind_embedding", "head", "others"}
    assert steps[0]["lr"]["wind_embedding"] == pytest.approx(2e-2)

    validations = finished.events("validation")
    assert [event["step"] for event in validations] == [4, 8, 12, 16, 20, 24]
    best_two = sorted(event["val_loss"] for event in validations)[:2]
    tags = list_tags(finished.run_dir)
    assert tags[-1].step == 24
    assert {tag.val_loss for tag in tags} == {*best_two, validations[-1]["val_loss"]}
    assert {path.name for path in (finished.run_dir / "checkpoints").iterdir() if path.is_dir()} == {
        tag.name for tag in tags
    }

    alpha = "blocks.0.attn.alpha"
    assert finished.events("start")[0]["alpha"] == {alpha: [2.0]}
    saved = load_file(tags[-1].folder(finished.run_dir) / WEIGHTS_FILE)
    assert validations[-1]["alpha"] == {alpha: saved[alpha].tolist()}
    assert validations[-1]["alpha"] != validations[0]["alpha"]

    facts = json.loads((finished.run_dir / "run.json").read_text(encoding="utf-8"))
    assert facts["world_size"] == 2
    assert facts["config_digest"] == config.digest
    assert facts["versions"]["torch"]
    assert finished.events("stop")[0]["reason"] == "all epochs done"


def test_no_rank_compiles_or_leaves_shared_memory_behind(
    tiny_config: TinyConfig, run_training: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    finished = run_training(tiny_config(**settings(2, 1)), "torchrun", ["--stop-after", "2"])
    assert finished.code == 0, finished.output
    assert "built successfully" not in finished.output
    assert not (tmp_path / "extensions").exists()


def test_patience_ends_the_run(tiny_config: TinyConfig, run_training: Callable[..., Any]) -> None:
    hopeless = settings(1, 2, validate_every=4, patience=2)
    hopeless["optimizer"] = {"base_lr": 1e-12}
    hopeless["model"] |= {"local_bias": "origin"}
    finished = run_training(tiny_config(**hopeless), "alone")
    assert finished.code == 0, finished.output
    assert "no better val_loss in 2 validations" in finished.events("stop")[0]["reason"]
    for event in (*finished.events("start"), *finished.events("validation")):
        assert event["preferences"]["blocks.0 travel [h]"] == pytest.approx([0.0, 24.0], abs=1e-6)
        assert event["preferences"]["blocks.0 width [patches]"] == pytest.approx([0.75, 1.5], abs=1e-6)
    assert len(finished.losses()) < 24


def test_stop_after_saves_the_very_step(tiny_config: TinyConfig, run_training: Callable[..., Any]) -> None:
    finished = run_training(tiny_config(**settings(1, 2)), "alone", ["--stop-after", "3"])
    assert finished.code == 0, finished.output
    assert [tag.step for tag in list_tags(finished.run_dir)] == [3]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_to_one_rank_ends_all_at_the_same_step(
    tiny_config: TinyConfig, start_ranks: Callable[..., Any], number: signal.Signals
) -> None:
    config = tiny_config(**settings(2, 1, epochs=200), data={"workers": 1})
    ranks = start_ranks(config)
    metrics = Path(config.training.run_dir) / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and '"event": "step"' in metrics.read_text(encoding="utf-8")):
        assert time.monotonic() < deadline, [rank.finish() for rank in ranks if rank.process.poll()]
        time.sleep(0.2)
    ranks[1].process.send_signal(number)

    endings = [rank.finish() for rank in ranks]
    assert [code for code, _ in endings] == [0, 0], endings
    assert "Traceback" not in endings[0][1] + endings[1][1]
    stop = json.loads(metrics.read_text(encoding="utf-8").splitlines()[-1])
    assert stop["reason"] == "asked to stop by a signal"
    assert list_tags(metrics.parent)[-1].step == stop["step"]


def test_loss_that_is_not_a_number_stops_before_the_update(
    tiny_config: TinyConfig, run_training: Callable[..., Any]
) -> None:
    exploding = settings(2, 1) | {"optimizer": {"base_lr": 1e30}}
    finished = run_training(tiny_config(**exploding), "torchrun")
    assert finished.code == 1
    message = " ".join(finished.output.split())
    assert "the weights were not updated" in message
    assert "times 2016-01-" in message
    assert "normalised ranges u " in message
    assert not list_tags(finished.run_dir)


def test_monitors_get_every_number_of_a_run_and_of_its_resume(
    tiny_config: TinyConfig,
    run_training: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for package in ("tensorboard", "wandb", "mlflow"):
        pytest.importorskip(package, reason=f"needs {package}: pip install aqtopo[monitors]")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = tiny_config(
        **settings(1, 2),
        monitors={"tensorboard": True, "wandb": {}, "mlflow": {"tracking_uri": str(tmp_path / "ml")}},
    )
    for steps in ("13", "15"):
        finished = run_training(config, "alone", ["--stop-after", steps])
        assert finished.code == 0, finished.output
        assert "WARNING" not in finished.output
    logged = {event["step"]: event["train_loss"] for event in finished.events("step")}
    for curves in (
        tensorboard_curves(finished.run_dir),
        wandb_curves(finished.run_dir),
        mlflow_curves(tmp_path / "ml"),
    ):
        assert curves["train_loss"] == pytest.approx(logged)
        assert set(curves["val_loss"]) == {12}
        assert set(curves["lr/wind_embedding"]) == set(range(1, 16))
        assert {"grad_norm", "samples_per_s", "memory_gib", "alpha/blocks.0.attn.alpha/0"} <= set(curves)


@pytest.mark.parametrize("ranks", [1, 2])
def test_wandb_without_a_login_is_bad_input(
    tiny_config: TinyConfig,
    run_training: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ranks: int,
) -> None:
    pytest.importorskip("wandb", reason="needs wandb: pip install aqtopo[monitors]")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    config = tiny_config(**settings(ranks, 1), monitors={"wandb": {}})
    finished = run_training(config, "alone" if ranks == 1 else "torchrun")
    assert finished.code == (2 if ranks == 1 else 1), finished.output  # torchrun's own code is 1
    assert "not logged in to Weights & Biases" in " ".join(finished.output.split())
    assert ranks > 1 or "Traceback" not in finished.output
    assert not finished.run_dir.exists()
