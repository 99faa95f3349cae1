"""Jobs of the scripts in slurm/: submission, waiting, signals."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aqtopo.checkpoint import list_tags
from aqtopo.config import RunConfig
from tests.events import events

from .cluster import SlurmCluster

ROOT = Path(__file__).parents[2]
LIMIT_S = 240.0
ON_A_SMALL_CLUSTER = ("--partition=all", "--gpus-per-node=0", "--cpus-per-task=1", "--time=10")
"""Options that override the scripts' defaults for LUMI."""


@dataclass(frozen=True)
class Job:
    """A submitted job and the run in it."""

    cluster: SlurmCluster
    number: str
    run_dir: Path
    log: Path

    def field(self, name: str) -> str:
        """Return a field of `scontrol show job`, such as JobState, Restarts, ExitCode."""
        shown = self.cluster.run("scontrol", "--oneliner", "show", "job", self.number)
        return dict(word.partition("=")[::2] for word in shown.split())[name]

    def wait(self, what: str, is_so: Callable[[], bool]) -> None:
        """Wait until a condition is true; after a timeout, fail with the job's log."""
        deadline = time.monotonic() + LIMIT_S
        while not is_so():
            assert time.monotonic() < deadline, (
                f"{what} did not happen\n{self.log_text()}\n{self.cluster.log_tails()}"
            )
            time.sleep(0.2)

    def wait_for_steps(self, more_than: int) -> None:
        """Wait until the run has logged more steps than a number."""
        self.wait(f"step {more_than + 1}", lambda: len(self.events("step")) > more_than)

    def wait_for_state(self, state: str) -> None:
        """Wait until the job has a state."""
        self.wait(state, lambda: self.field("JobState") == state)

    def wait_for_restart(self, number: int = 1, *changes: str) -> None:
        """Wait for the job's n-th restart, and spare it the two minutes that Slurm makes it wait.

        What `scontrol update` is to change of the job besides, before it starts, may be given.
        """

        def restarted() -> bool:
            if int(self.field("Restarts")) < number:
                return False
            # After a node's failure the restart is counted while the start before it is still completing.
            if (state := self.field("JobState")) == "PENDING":
                # Not at once: slurmd refuses a job in the second in which it was killed.
                time.sleep(2.0)
                with suppress(RuntimeError):  # it may have started meanwhile
                    self.cluster.run("scontrol", "update", f"jobid={self.number}", "StartTime=now", *changes)
            return state not in ("PENDING", "COMPLETING")

        self.wait(f"restart {number}", restarted)

    def signal_batch_shell(self, name: str) -> None:
        """Send a signal as `--signal=B:...` does."""
        self.cluster.run("scancel", f"--signal={name}", "--batch", self.number)

    def cancel(self) -> None:
        """Cancel the job and wait for its end."""
        self.cluster.run("scancel", self.number)
        self.wait_for_state("CANCELLED")

    def log_text(self) -> str:
        """Return the job's log."""
        return self.log.read_text(encoding="utf-8") if self.log.exists() else ""

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Return the complete lines of one kind in metrics.jsonl."""
        return events(self.run_dir, kind)

    def last_saved_step(self) -> int:
        """Return the step of the newest committed state."""
        return list_tags(self.run_dir)[-1].step


def submit(
    cluster: SlurmCluster,
    config: RunConfig,
    *options: str,
    script: str = "train",
    argument: Path | None = None,
    program: str = "sbatch",
    defaults: Sequence[str] = ON_A_SMALL_CLUSTER,
    **variables: str,
) -> Job:
    """Submit `slurm/<script>.sbatch`; further options of sbatch and variables of the job's environment.

    `program` is `sbatch`, or the script that calls it with the options of a site; `defaults` are options that
    a site may give. `argument` stands in for the run's configuration, where a script takes something else.
    """
    cluster.wait_until_idle()  # where a number of nodes is left open, Slurm takes what is there
    run_dir = Path(config.training.run_dir)
    folder = run_dir.parent
    file = folder / f"{config.name}.json"
    file.write_text(config.to_json(), encoding="utf-8")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {
        "PATH": path,
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "TMPDIR": str(folder),
        "AQTOPO_JOBS": str(folder / "jobs"),
    }
    if defaults:
        defaults = (*defaults, "--ntasks-per-node=1")
    defaults = (*defaults, f"--nodes={config.training.nodes}")
    words = (
        ROOT / program if "/" in program else program,
        "--parsable",
        f"--chdir={ROOT}",
        f"--output={folder}/job.log",
        *defaults,
        *options,
    )
    number = cluster.run(
        *words, ROOT / "slurm" / f"{script}.sbatch", argument or file, **(environment | variables)
    ).strip()
    return Job(cluster, number, run_dir, folder / "job.log")
