"""Scores of several processes, against those of one."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aqtopo.checkpoint import load_run
from aqtopo.evaluation.evaluate import evaluate
from aqtopo.evaluation.score_file import scores_as_json

from .conftest import TIME_LIMIT_S, environment, launcher_command


def numbers(content: Any) -> list[float]:
    """All numbers in a part of `scores.json`, in order; null as NaN."""
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, list):
        return [number for item in content for number in numbers(item)]
    return [] if isinstance(content, str) else [float("nan") if content is None else float(content)]


@pytest.mark.slow
def test_two_ranks_give_the_scores_of_one(untrained_run: Path) -> None:
    ended = subprocess.run(
        [*launcher_command("torchrun", 2), "evaluate", str(untrained_run), "--json"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    shared = json.loads(ended.stdout)
    done = evaluate(load_run(untrained_run))
    alone = scores_as_json(done.scores, done.strata)
    for part in ("summary", "scores", "strata"):
        expected = numbers(alone[part])
        assert expected
        np.testing.assert_allclose(numbers(shared[part]), expected, rtol=1e-6)
    assert shared["initialisations"] == alone["initialisations"] == 6
