"""What a user has to put right ends every rank with code 2, a paragraph and no trace on the disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aqtopo.config import RunConfig

TinyConfig = Callable[..., RunConfig]


def refusal(finished: Any) -> str:
    """The message of a run that must have been refused."""
    assert finished.code == 2, finished.output
    assert "Traceback" not in finished.output
    return " ".join(finished.output.split())


def test_other_world_size_than_configured(tiny_config: TinyConfig, run_training: Callable[..., Any]) -> None:
    finished = run_training(tiny_config(training={"ranks_per_node": 2}), "alone", ranks=1)
    assert "1 process(es) were started, but training.nodes x training.ranks_per_node = 1 x 2" in refusal(
        finished
    )
    assert not finished.run_dir.exists()


def test_missing_store(tiny_config: TinyConfig, run_training: Callable[..., Any], tmp_path: Path) -> None:
    finished = run_training(tiny_config(data={"store": str(tmp_path / "nowhere.zarr")}), "alone")
    assert "nowhere.zarr" in refusal(finished)
    assert not finished.run_dir.exists()


def test_run_directory_of_another_run(tiny_config: TinyConfig, run_training: Callable[..., Any]) -> None:
    config = tiny_config()
    run_dir = Path(config.training.run_dir)
    run_dir.mkdir()
    (run_dir / "config.json").write_text(tiny_config(name="other").to_json())
    finished = run_training(config, "alone")
    assert "is already used by another configuration" in refusal(finished)
    assert [path.name for path in run_dir.iterdir()] == ["config.json"]


def test_run_directory_with_foreign_files(tiny_config: TinyConfig, run_training: Callable[..., Any]) -> None:
    config = tiny_config()
    run_dir = Path(config.training.run_dir)
    run_dir.mkdir()
    (run_dir / "thesis.tex").touch()
    assert "is not empty and holds no run" in refusal(run_training(config, "alone"))
    assert [path.name for path in run_dir.iterdir()] == ["thesis.tex"]


def test_unwritable_run_directory(tiny_config: TinyConfig, run_training: Callable[..., Any]) -> None:
    # Not even root may create a file here, so the test means the same for every user.
    finished = run_training(tiny_config(training={"run_dir": "/proc/self/fdinfo/run"}), "alone")
    assert "/proc/self/fdinfo/run cannot be written" in refusal(finished)


def test_epoch_too_short_to_be_validated(tiny_config: TinyConfig, run_training: Callable[..., Any]) -> None:
    finished = run_training(tiny_config(training={"validate_every": 100}), "alone")
    assert "an epoch has only 48" in refusal(finished)
    assert not finished.run_dir.exists()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun"])
def test_launchers_pass_the_refusal_on(
    tiny_config: TinyConfig, run_training: Callable[..., Any], launcher: str
) -> None:
    config = tiny_config(training={"ranks_per_node": 2, "validate_every": 1000})
    finished = run_training(config, launcher)
    assert finished.code != 0
    assert "training.validate_every = 1000" in " ".join(finished.output.split())
    assert not finished.run_dir.exists()
