"""Submission to a site that is not LUMI, on a real Slurm."""

from collections.abc import Callable
from pathlib import Path

import pytest

from aqtopo.config import RunConfig

from .batch import Job, submit
from .cluster import SlurmCluster

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]

SITE = """\
site_options=(--partition=all --ntasks-per-node=2 --cpus-per-task=1 --time=10)
export FABRIC=mine
"""


def short_run(tiny_config: Callable[..., RunConfig]) -> RunConfig:
    """Return a run of a few steps on one node with two ranks."""
    return tiny_config(
        training={"ranks_per_node": 2, "epochs": 1, "validate_every": 12},
        deepspeed={"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 1},
    )


def submit_to_site(
    cluster: SlurmCluster, tiny_config: Callable[..., RunConfig], site: str, **environment: str
) -> Job:
    """Submit a short run with two ranks to a generic site."""
    environment |= {"AQTOPO_SITE": site}
    config = short_run(tiny_config)
    return submit(cluster, config, "--ntasks-per-node=2", program="slurm/submit.sh", **environment)


def test_job_of_a_site_of_your_own_runs_in_its_container(
    slurm_cluster: SlurmCluster, tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    runner, site, image = tmp_path / "runner", tmp_path / "site.sh", tmp_path / "image.sif"
    image.touch()
    runner.write_text('#!/bin/bash\nshift 2\necho "$FABRIC" >>"$0.used"\nexec "$@"\n', encoding="utf-8")
    runner.chmod(0o755)
    site.write_text(f'{SITE}: "${{AQTOPO_CONTAINER_RUN:={runner} --gpus}}"\n', encoding="utf-8")
    job = submit(
        slurm_cluster,
        short_run(tiny_config),
        program="slurm/submit.sh",
        defaults=(),
        AQTOPO_SITE=str(site),
        AQTOPO_CONTAINER=str(image),
    )
    job.wait_for_state("COMPLETED")
    assert {event["world_size"] for event in job.events("start")} == {2}
    used = (tmp_path / "runner.used").read_text(encoding="utf-8").split()
    assert used == ["mine"] * 3  # the check and two ranks
    assert job.events("stop")[-1]["reason"] == "all epochs done"


@pytest.mark.parametrize("site", ["generic_nvidia", "generic_rocm"])
def test_job_of_a_generic_site_trains(
    slurm_cluster: SlurmCluster, tiny_config: Callable[..., RunConfig], site: str
) -> None:
    job = submit_to_site(slurm_cluster, tiny_config, site)
    job.wait_for_state("COMPLETED")
    assert job.events("stop")[-1]["reason"] == "all epochs done"


def test_missing_container_program_is_bad_input(
    slurm_cluster: SlurmCluster, tiny_config: Callable[..., RunConfig]
) -> None:
    job = submit_to_site(slurm_cluster, tiny_config, "generic_nvidia", AQTOPO_CONTAINER="docker://image")
    job.wait_for_state("FAILED")
    assert (job.field("Restarts"), job.field("ExitCode")) == ("0", "2:0")
    assert "there is no program apptainer" in job.log_text()
    assert not job.run_dir.exists()
