"""An ablation as a job array on a real Slurm: every task trains one variant, the command scores them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from aqtopo.ablation.factors import parse_factors
from aqtopo.ablation.plan import claim_folder, plan_ablation
from aqtopo.ablation.trainer import is_trained
from aqtopo.config import RunConfig
from tests.events import events

from .batch import submit
from .cluster import SlurmCluster

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]


def test_each_array_task_trains_one_variant(
    slurm_cluster: SlurmCluster, tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = tiny_config(training={"epochs": 1, "validate_every": 6})
    path = tmp_path / "config.json"
    path.write_text(config.to_json(), encoding="utf-8")
    ablation = plan_ablation(path, [], parse_factors(["wind_order"]), 1, tmp_path / "out")
    claim_folder(ablation)
    job = submit(slurm_cluster, config, "--array=0-1", script="ablation", argument=ablation.out)
    job.wait("both trained", lambda: all(is_trained(trial) for trial in ablation.trials))
    starts = [events(trial.run_dir, "start") for trial in ablation.trials]
    assert [len(started) for started in starts] == [1, 1]  # none trained the other's
    assert len({started[0]["slurm"]["job"] for started in starts}) == 2
