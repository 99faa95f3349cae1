import os
import subprocess
import sys
from pathlib import Path

from aqtopo.distributed.deadlines import STACKS
from aqtopo.distributed.watchdog import Heartbeat, _find_culprits

NO_CULPRIT = "all other ranks have new heartbeats and are in the same phase"


def heartbeat(phase_count: int, time_ns: int) -> Heartbeat:
    return Heartbeat("nid1", 7, f"step {phase_count}", phase_count, time_ns)


def test_silent_ranks_are_named_before_ranks_that_are_behind() -> None:
    before = {0: heartbeat(5, 1), 1: heartbeat(5, 1), 2: heartbeat(4, 1), 3: heartbeat(5, 1)}
    lagging = {rank: heartbeat(seen.phase_count, 2) for rank, seen in before.items()}
    assert (
        _find_culprits(before, lagging, 0) == "in an earlier phase: rank 2 (on nid1, process 7, in `step 4`)"
    )
    silent = lagging | {1: before[1]}
    assert (
        _find_culprits(before, silent, 0) == "no new heartbeat from rank 1 (on nid1, process 7, in `step 5`)"
    )


def test_a_rank_without_heartbeat_is_silent_and_healthy_ranks_are_not_named() -> None:
    assert (
        _find_culprits({0: None, 1: None}, {0: None, 1: None}, 0)
        == "no new heartbeat from rank 1 (no heartbeat yet)"
    )
    assert (
        _find_culprits({0: heartbeat(3, 1), 1: heartbeat(3, 1)}, {0: heartbeat(3, 2), 1: heartbeat(3, 2)}, 0)
        == NO_CULPRIT
    )


def test_a_server_that_does_not_answer_is_named() -> None:
    assert "rank 0, which serves the heartbeat store" in _find_culprits({0: None}, None, 1)


HANGS = """
import sys, time
from pathlib import Path
from aqtopo.distributed import watchdog
from aqtopo.distributed.launch import read_launch
watchdog.STORE_TIMEOUT_S = 0.5
with watchdog.start_watchdog(read_launch({}), Path(sys.argv[1])) as dog:
    dog.enter("step", "7")
    time.sleep(600)
"""


def test_a_disk_that_hangs_does_not_block_the_watchdog(tmp_path: Path) -> None:
    (tmp_path / STACKS).mkdir()
    os.mkfifo(tmp_path / STACKS / "rank00000.txt")  # to open it is to wait for a reader
    ended = subprocess.run(
        [sys.executable, "-c", HANGS, str(tmp_path)],
        env=os.environ | {"AQTOPO_DEADLINES": "step=0.4"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    assert "aqtopo [rank 0]: past the deadline of the phase `step 7`" in ended.stderr
