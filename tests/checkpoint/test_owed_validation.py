"""A run that has to stop when a validation is due stops in time, and its next start validates."""

from collections.abc import Callable
from pathlib import Path

import pytest

from aqtopo.checkpoint.tags import list_tags
from aqtopo.config import RunConfig
from tests.events import events

from .conftest import Job, RunJobs

pytestmark = pytest.mark.slow


def test_validation_skipped_by_a_stop_is_done_by_the_next_start(
    run_jobs: RunJobs, tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = tiny_config(training={"validate_every": 2})  # the first step has two micro-steps
    file, job_dir = tmp_path / "run.json", tmp_path / "job"
    file.write_text(config.to_json(), encoding="utf-8")
    command = ["train", str(file), "--stop-after", "2"]
    told = Job(1, "aqtopo_told_to_stop", {"arguments": command, "job_dir": str(job_dir)})
    stopped, went_on = run_jobs(told, Job(1, "aqtopo", {"arguments": command}))
    assert (stopped.codes, went_on.codes) == ([0], [0]), stopped.output + went_on.output

    assert (job_dir / "again").read_text(encoding="utf-8") == "saved at step 1\n"
    run_dir = Path(config.training.run_dir)
    assert (job_dir / "saved").read_text(encoding="utf-8") == "epoch00-step000001\n"
    happened = [(e["event"], e["step"]) for e in events(run_dir, "step", "validation", "stop")]
    assert happened == [
        ("step", 1),
        ("stop", 1),
        ("validation", 1),
        ("step", 2),
        ("validation", 2),
        ("stop", 2),
    ]
    assert [(tag.step, tag.val_loss is not None) for tag in list_tags(run_dir)] == [(1, True), (2, True)]
