"""A refusal reaches the user through every launcher, and no rank waits for the others."""

from collections.abc import Callable
from typing import Any

import pytest

from aqtopo.config import RunConfig

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun"])
def test_launchers_pass_the_refusal_on(
    tiny_config: Callable[..., RunConfig], run_training: Callable[..., Any], launcher: str
) -> None:
    config = tiny_config(training={"ranks_per_node": 2, "validate_every": 1000})
    finished = run_training(config, launcher)
    assert finished.code != 0
    assert "training.validate_every = 1000" in " ".join(finished.output.split())
    assert not finished.run_dir.exists()
