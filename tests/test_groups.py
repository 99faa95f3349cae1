"""Tests of one group, such as those of the Slurm cluster, run one after the other on one worker."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import pytest

@pytest.mark.xdist_group("group")
@pytest.mark.parametrize("place", range(6))
def test_worker(place, worker_id):
    with open("workers", "a") as file:
        file.write(worker_id + " ")
"""


def test_a_group_runs_on_one_worker(tmp_path: Path) -> None:
    (tmp_path / "test_program.py").write_text(PROGRAM, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadgroup", "test_program.py"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    workers = (tmp_path / "workers").read_text(encoding="utf-8").split()
    assert len(workers) == 6
    assert len(set(workers)) == 1
