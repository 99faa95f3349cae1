"""Running jobs on several ranks, forked from one process that has imported everything."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aqtopo.checkpoint.tags import CHECKPOINTS
from aqtopo.checkpoint.universal import open_universal
from aqtopo.distributed.process_group import SINGLE_RANK

HERE = Path(__file__).parent
TIME_LIMIT_S = 560


@dataclass(frozen=True)
class Job:
    """A function of this folder's jobs.py, or of another file, on a number of ranks."""

    world: int
    function: str
    arguments: dict[str, Any]
    file: str = "jobs"


@dataclass(frozen=True)
class Ended:
    """Result of a job: exit code of each rank, and the output of all."""

    codes: list[int]
    output: str

    @property
    def text(self) -> str:
        """The output without line breaks."""
        return " ".join(self.output.split())


RunJobs = Callable[..., list[Ended]]


def run_jobs_in(folder: Path, jobs: list[Job]) -> list[Ended]:
    """Run jobs one after the other; how each ended."""
    folder.mkdir(parents=True, exist_ok=True)
    folders = [folder / f"job{number}" for number in range(len(jobs))]
    plan = [job.__dict__ | {"folder": str(place)} for job, place in zip(jobs, folders, strict=True)]
    (folder / "jobs.json").write_text(json.dumps(plan), encoding="utf-8")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "RANK", "WORLD_SIZE"))}
    done = subprocess.run(
        [sys.executable, str(HERE / "forked.py"), str(folder / "jobs.json")],
        env=clean | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [
        Ended(
            json.loads((place / "codes.json").read_text(encoding="utf-8")),
            "".join(path.read_text(encoding="utf-8") for path in sorted(place.glob("rank*.log"))),
        )
        for place in folders
    ]


@pytest.fixture
def run_jobs(tmp_path: Path) -> RunJobs:
    """`run_jobs(Job(...), ...)`: run jobs one after the other."""
    count = iter(range(100))
    return lambda *jobs: run_jobs_in(tmp_path / f"jobs{next(count)}", list(jobs))


def tag_folder(run_dir: Path, step: int = 5) -> Path:
    """Return the folder of the toy's state of a step."""
    return run_dir / CHECKPOINTS / f"epoch00-step{step:06d}"


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tags of a toy run on two ranks, at steps 5 and 6, with their universal forms."""
    folder = tmp_path_factory.mktemp("saved")
    jobs = [Job(2, "save_toy", {"folder": str(folder), "steps": steps}) for steps in (5, 6)]
    for ended in run_jobs_in(folder / "jobs", jobs):
        assert not any(ended.codes), ended.output
    for step in (5, 6):
        open_universal(tag_folder(folder, step), SINGLE_RANK)
    return folder


@pytest.fixture
def run_dir(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(saved, tmp_path / "run"))
