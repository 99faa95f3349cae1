import os
import subprocess
import sys
from pathlib import Path

from aqtopo.training.watchdog import STACKS, Words, _culprits

NOBODY = "no other rank is silent, behind or has failed"


def words(entered: int, beat: int) -> Words:
    return Words("nid1", 7, f"step {entered}", entered, beat)


def test_silence_is_to_blame_before_lagging() -> None:
    before = {0: words(5, 1), 1: words(5, 1), 2: words(4, 1), 3: words(5, 1)}
    lagging = {rank: words(said.entered, 2) for rank, said in before.items()}
    assert _culprits(before, lagging, 0) == "is behind: rank 2 (on nid1, process 7, in `step 4`)"
    silent = lagging | {1: before[1]}
    assert _culprits(before, silent, 0) == "does not answer: rank 1 (on nid1, process 7, in `step 5`)"


def test_a_rank_never_heard_of_is_silent_and_nobody_is_blamed_for_nothing() -> None:
    assert (
        _culprits({0: None, 1: None}, {0: None, 1: None}, 0) == "does not answer: rank 1 (not heard of yet)"
    )
    assert _culprits({0: words(3, 1), 1: words(3, 1)}, {0: words(3, 2), 1: words(3, 2)}, 0) == NOBODY


def test_a_keeper_that_does_not_answer_is_to_blame_itself() -> None:
    assert "rank 0, which keeps" in _culprits({0: None}, None, 1)


HANGS = """
import sys, time
from pathlib import Path
from aqtopo.training import watchdog
from aqtopo.training.launch import read_launch
watchdog.ANSWER_S = 0.5
with watchdog.watch_together(read_launch({}), Path(sys.argv[1])) as dog:
    dog.enter("step", "7")
    time.sleep(600)
"""


def test_a_disk_that_hangs_does_not_keep_the_watchdog_from_speaking(tmp_path: Path) -> None:
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
