"""The drill itself: kills that are survived, and a verdict that can fail."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from aqtopo.config import RunConfig
from aqtopo.training.drill import DrillResult, drill

TinyConfig = Callable[..., RunConfig]

GOOD = DrillResult(3, {"training": 3}, 3, [], 30, 0.0, 0, 1.0)


def test_verdict_needs_equal_losses_and_no_lost_tag() -> None:
    assert GOOD.passed
    assert not replace(GOOD, lost_tags=["a"]).passed
    assert not replace(GOOD, worst_loss=1e-3).passed
    assert not replace(GOOD, worst_loss=float("nan")).passed


def test_folder_in_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exists"):
        drill(tmp_path / "config.json", tmp_path, 1, [1], 5, 2, 0)


def test_ranks_that_do_not_divide_the_batch_are_refused(tiny_config: TinyConfig, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(tiny_config().to_json())
    with pytest.raises(ValueError, match="4 samples a step cannot be divided among 3 ranks"):
        drill(tmp_path / "config.json", tmp_path / "out", 1, [3], 5, 2, 0)


@pytest.mark.slow
def test_killed_run_ends_as_the_one_left_in_peace(tiny_config: TinyConfig, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(tiny_config(training={"validate_every": 10}).to_json())
    result = drill(tmp_path / "config.json", tmp_path / "out", 3, [2, 1, 3], 14, 2, seed=1)
    assert result.passed, result
    assert result.kills == 3
    assert result.steps >= 14
