"""Fault tests: one that passes, and configurations that it refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from aqtopo.config import RunConfig
from aqtopo.fault_testing.fault_test import fault_test

TinyConfig = Callable[..., RunConfig]


def test_folder_in_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exists"):
        fault_test(tmp_path / "config.json", tmp_path, 1, [1], 5, 2, 0)


def test_ranks_that_do_not_divide_the_batch_are_refused(tiny_config: TinyConfig, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(tiny_config().to_json(), encoding="utf-8")
    with pytest.raises(ValueError, match="4 samples per step cannot be divided among 3 ranks"):
        fault_test(tmp_path / "config.json", tmp_path / "out", 1, [3], 5, 2, 0)


@pytest.mark.slow
def test_killed_run_equals_the_undisturbed_run(tiny_config: TinyConfig, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(tiny_config().to_json(), encoding="utf-8")
    result = fault_test(tmp_path / "config.json", tmp_path / "out", 2, [2, 1], 12, 2, seed=1)
    assert result.passed, result
    assert result.kills >= result.resumes == 2
    assert result.steps >= 12
    assert sum(result.phases.values()) == sum(result.ranks.values()) == result.kills
    kept = json.loads((tmp_path / "out" / "victim" / "config.json").read_text(encoding="utf-8"))["checkpoint"]
    assert kept["keep_best"] == 1  # so that states are pruned
