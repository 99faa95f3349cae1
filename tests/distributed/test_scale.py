"""Sixteen ranks start, train, save and resume on one machine, and opening files does not grow with them."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def start_up(*worlds: int) -> list[dict[str, Any]]:
    """Measure these numbers of ranks with the benchmark, in a separate process because it forks."""
    code = f"import json; from benchmarks.start_up import measure; print(json.dumps(measure({worlds})))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return rows


def test_sixteen_ranks_open_no_more_files_each_than_two() -> None:
    few, many = start_up(2, 16)
    assert (few["ranks"], many["ranks"]) == (2, 16)
    for kind in ("fresh", "resumed"):
        # Rank 0 reads the hashes that each rank leaves beside what it has saved.
        for files, more in (("store_files", 0), ("run_files", 0), ("run_files_rank_0", 16 - 2)):
            name = f"{kind}_{files}"
            assert many[name] <= few[name] + more, (name, few[name], many[name])
