"""The batch scripts on a real Slurm: time limits, requeues, cancelling, lost nodes, hopeless jobs."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import aqtopo
import aqtopo_kernels
from aqtopo.checkpoint.inspection import open_state, verify_state
from aqtopo.checkpoint.tags import last_tag
from aqtopo.config import RunConfig

from .batch import Job, submit
from .cluster import SlurmCluster

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]

TinyConfig = Callable[..., RunConfig]
SOURCES = [Path(package.__file__).resolve().parent for package in (aqtopo, aqtopo_kernels)]
"""The packages themselves: the clone may be called aqtopo too, with the libraries' files below it."""


def own_frames(log: str) -> list[str]:
    """Return the files of this project that tracebacks in a log name."""
    files = re.findall(r'File "([^"]+)", line \d+', log)
    return [file for file in files if any(Path(file).resolve().is_relative_to(source) for source in SOURCES)]


def test_frames_are_told_apart_by_package(tmp_path: Path) -> None:
    library = SOURCES[0].parent / ".venv/lib/python3.11/site-packages/torch/distributed/run.py"
    link = tmp_path / "link"
    link.symlink_to(SOURCES[0])
    log = "".join(
        f'  File "{file}", line 7, in main\n'
        for file in (library, link / "refusal.py", SOURCES[1] / "launch.py", "<string>")
    )
    assert own_frames(log) == [f"{link}/refusal.py", f"{SOURCES[1]}/launch.py"]


def endless(tiny_config: TinyConfig, nodes: int = 2, **training: Any) -> RunConfig:
    """A run of one rank a node that no test waits for."""
    return tiny_config(
        training={"nodes": nodes, "ranks_per_node": 1, "epochs": 2000, "validate_every": 12} | training,
        checkpoint={"every_steps": 3},
        deepspeed={"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2 // nodes},
    )


def assert_steps_are_continuous(job: Job) -> None:
    """Each step was made once, in order, and resuming did not throw the loss back."""
    steps = [event["step"] for event in job.events("step")]
    assert steps == list(range(1, len(steps) + 1))
    for resumed in job.events("resume"):
        before, after = (
            [event["train_loss"] for event in job.events("step") if first < event["step"] <= first + 10]
            for first in (resumed["step"] - 10, resumed["step"])
        )
        assert sum(after) / len(after) < 1.25 * sum(before) / len(before)
    # torchrun ends with a traceback of its own on SIGTERM, after its ranks have saved and ended.
    assert not own_frames(job.log_text())


def test_losing_and_regaining_a_node_keeps_the_steps(
    slurm_cluster: SlurmCluster, tiny_config: TinyConfig
) -> None:
    job = submit(slurm_cluster, endless(tiny_config))
    job.wait_for_steps(12)
    with slurm_cluster.without_node("node2"):
        job.wait_for_restart(1, "NumNodes=1", "NumTasks=1")
        job.wait_for_steps(job.last_saved_step() + 12)
    job.signal_batch_shell("USR1")
    job.wait_for_restart(2, "NumNodes=2", "NumTasks=2")
    job.wait_for_steps(job.last_saved_step() + 12)
    job.cancel()

    worlds = [(event["world_before"], event["world_size"]) for event in job.events("resume")]
    assert worlds == [(2, 1), (1, 2)]
    assert {event["train_batch_size"] for event in job.events("start")} == {4}
    assert "ended by Slurm, which has requeued the job" in job.log_text()
    assert job.log_text().count("cancelled; not requeued") == 1
    assert_steps_are_continuous(job)


@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun"])
def test_signalled_job_saves_and_resumes_after_the_requeue(
    launcher: str, slurm_cluster: SlurmCluster, tiny_config: TinyConfig
) -> None:
    job = submit(slurm_cluster, endless(tiny_config), AQTOPO_LAUNCH=launcher)
    job.wait_for_steps(12)
    job.signal_batch_shell("USR1")
    job.wait_for_restart()
    saved = job.last_saved_step()
    job.wait_for_steps(saved + 12)
    job.cancel()

    assert job.last_saved_step() == job.events("step")[-1]["step"]
    assert [event["slurm"].get("restart_count") for event in job.events("start")] == [None, "1"]
    assert "requeued (restarts so far: 0)" in job.log_text()
    assert_steps_are_continuous(job)


def test_job_saves_and_resumes_at_the_time_limit(
    slurm_cluster: SlurmCluster, tiny_config: TinyConfig
) -> None:
    job = submit(slurm_cluster, endless(tiny_config, nodes=1), "--time=1", "--signal=B:USR1@30")
    job.wait_for_restart(1, "TimeLimit=10")  # one minute may not suffice for the start
    saved = job.last_saved_step()
    job.wait_for_steps(saved + 12)
    job.cancel()
    assert "the time limit is near" in job.log_text()
    assert_steps_are_continuous(job)


def test_cancelling_during_a_save_loses_no_step(slurm_cluster: SlurmCluster, tiny_config: TinyConfig) -> None:
    job = submit(slurm_cluster, endless(tiny_config, nodes=1))
    job.wait_for_steps(3)
    job.wait("a save", lambda: any((job.run_dir / "checkpoints").glob("*.tmp")))
    job.cancel()

    assert job.field("Restarts") == "0"
    assert job.last_saved_step() == job.events("step")[-1]["step"] == job.events("stop")[-1]["step"]
    tag = last_tag(job.run_dir)
    assert tag is not None
    verify_state(open_state(tag.folder(job.run_dir)))
    assert not any((job.run_dir / "checkpoints").glob("*.tmp"))
    assert "Traceback" not in job.log_text()


def test_job_ends_after_three_failures_in_a_row(slurm_cluster: SlurmCluster, tiny_config: TinyConfig) -> None:
    config = tiny_config(optimizer={"base_lr": 1e30}, training={"validate_every": 12})
    job = submit(slurm_cluster, config)
    for number in (1, 2):
        job.wait_for_restart(number)
    job.wait_for_state("FAILED")
    assert job.field("Restarts") == "2"
    assert "3 times in a row without a new saved state; not requeued" in job.log_text()
    assert "weights were not updated" in " ".join(job.log_text().split())


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        pytest.param({}, ["--time=0"], "the job has no time limit", id="no-time-limit"),
        pytest.param({}, ["--nodes=2"], "2 process(es) were started, but", id="tasks"),
        pytest.param({"training": {"validate_every": 10_000}}, [], "would never be validated", id="config"),
    ],
)
def test_bad_input_gives_a_message_and_no_retry(
    changes: dict[str, Any],
    options: list[str],
    message: str,
    slurm_cluster: SlurmCluster,
    tiny_config: TinyConfig,
) -> None:
    job = submit(slurm_cluster, tiny_config(**changes), *options)
    job.wait_for_state("FAILED")
    assert (job.field("Restarts"), job.field("ExitCode")) == ("0", "2:0")
    assert message in " ".join(job.log_text().split())
    assert "Traceback" not in job.log_text()


def test_debug_script_is_not_requeued(
    slurm_cluster: SlurmCluster, tiny_config: TinyConfig, tmp_path: Path
) -> None:
    job = submit(slurm_cluster, endless(tiny_config, nodes=1), script="debug")
    job.wait_for_steps(3)
    job.signal_batch_shell("USR1")
    job.wait_for_state("COMPLETED")
    assert job.last_saved_step() == job.events("step")[-1]["step"]
    assert (tmp_path / "jobs" / job.number / "again").exists()
