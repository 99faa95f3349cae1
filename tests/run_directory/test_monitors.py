from collections.abc import Mapping
from pathlib import Path

import pytest

from aqtopo.config import RunConfig
from aqtopo.run_directory.monitors import Monitor, Monitors, login_problems, numbers
from aqtopo.run_directory.run_file import RUN_FILE
from tests.conftest import TinyConfig
from tests.curves import mlflow_curves, tensorboard_curves


class Recorder(Monitor):
    """A monitor that fails from a step on."""

    name = "recorder"

    def __init__(self, fails_at: int = 1000) -> None:
        self.written: dict[int, Mapping[str, float]] = {}
        self.fails_at, self.failed = fails_at, list[bool]()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if step >= self.fails_at:
            raise ConnectionError("the server does not answer")
        self.written[step] = values

    def close(self, failed: bool) -> None:
        self.failed.append(failed)


def opened(config: RunConfig, run_dir: Path, step: int) -> Monitors:
    run_dir.mkdir(exist_ok=True)
    (run_dir / RUN_FILE).write_text("{}", encoding="utf-8")
    return Monitors.open(config, run_dir, step, print)


def test_numbers_of_an_event_keep_their_names() -> None:
    event = {
        "step": 3,
        "line": "text",
        "best": True,
        "grad_norm": None,
        "lr": {"head": 0.1},
        "alpha": {"blocks.0.attn.alpha": [2.0, 3.0]},
    }
    assert dict(numbers(event)) == {
        "step": 3,
        "lr/head": 0.1,
        "alpha/blocks.0.attn.alpha/0": 2.0,
        "alpha/blocks.0.attn.alpha/1": 3.0,
    }


def test_monitor_that_fails_does_not_end_the_run_or_the_others() -> None:
    said, failing, sound = list[str](), Recorder(fails_at=2), Recorder()
    monitors = Monitors([failing, sound], said.append)
    for step in (1, 2, 3):
        monitors.write({"step": step, "train_loss": 0.5})
    monitors.close(failed=False)
    assert list(failing.written) == [1]
    assert sound.written == {step: {"train_loss": 0.5} for step in (1, 2, 3)}
    assert (failing.failed, sound.failed) == ([], [False])
    assert len(said) == 1
    assert "recorder failed at step 2" in said[0]
    assert "the server does not answer" in said[0]


def test_bug_in_a_monitor_is_raised() -> None:
    broken = Recorder()
    broken.written = None  # type: ignore[assignment]
    monitors = Monitors([broken], print)
    monitors.write({"step": 1, "train_loss": 0.5})
    with pytest.raises(TypeError):
        monitors.close(failed=False)


def test_resumed_run_repeats_steps_in_the_same_tensorboard_curve(
    tiny_config: TinyConfig, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard: pip install aqtopo[monitors]")
    config = tiny_config(monitors={"tensorboard": True})
    for first, loss in ((0, 0.1), (3, 0.2)):  # killed after step 5, resumed at the state of step 3
        monitors = opened(config, tmp_path / "run", first)
        for step in range(first + 1, 6):
            monitors.write({"step": step, "train_loss": loss})
        monitors.close(failed=False)
    curve = tensorboard_curves(tmp_path / "run")["train_loss"]
    assert curve == pytest.approx({1: 0.1, 2: 0.1, 3: 0.1, 4: 0.2, 5: 0.2})


def test_mlflow_finds_the_run_again_and_takes_names_with_brackets(
    tiny_config: TinyConfig, tmp_path: Path
) -> None:
    pytest.importorskip("mlflow", reason="needs mlflow: pip install aqtopo[monitors]")
    config = tiny_config(monitors={"mlflow": {"tracking_uri": str(tmp_path / "mlruns")}})
    for step in (1, 2):
        monitors = opened(config, tmp_path / "run", step - 1)
        monitors.write({"step": step, "preferences": {"blocks.0 travel [h]": [24.0]}})
        monitors.close(failed=False)
    assert mlflow_curves(tmp_path / "mlruns")["preferences/blocks.0 travel h/0"] == {1: 24.0, 2: 24.0}


def test_mlflow_that_cannot_be_used_says_where(tiny_config: TinyConfig, tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="needs mlflow: pip install aqtopo[monitors]")
    config = tiny_config(monitors={"mlflow": {"tracking_uri": "htp://nowhere"}})
    with pytest.raises(ValueError, match=r"monitors\.mlflow: htp://nowhere cannot be used"):
        opened(config, tmp_path / "run", 0)


@pytest.mark.slow
def test_wandb_needs_a_login_only_online(
    tiny_config: TinyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb", reason="needs wandb: pip install aqtopo[monitors]")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    config = tiny_config(monitors={"wandb": {}})
    for mode, key, problems in (
        ("online", "", 1),
        ("offline", "", 0),
        ("online", "short", 1),
        ("online", "a" * 40, 0),
    ):
        wandb.teardown()
        monkeypatch.setenv("WANDB_MODE", mode)
        monkeypatch.setenv("WANDB_API_KEY", key)
        assert len(login_problems(config)) == problems, (mode, key)
    wandb.teardown()
    assert login_problems(tiny_config()) == []
