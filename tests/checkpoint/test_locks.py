"""File locks: exclusive or shared between processes, and released when their process ends."""

import errno
import fcntl
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from aqtopo.checkpoint.files import exclusive_lock, exclusive_lock_on_all_ranks, shared_lock
from aqtopo.distributed.process_group import SINGLE_RANK, SingleRank
from aqtopo.refusal import BusyError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "lock"
    path.touch()
    return path


def test_lock_is_exclusive_or_shared(path: Path) -> None:
    with exclusive_lock(path) as first, exclusive_lock(path) as second:
        assert (first, second) == (True, False)
    with shared_lock(path), shared_lock(path), exclusive_lock(path) as held:
        assert not held
    with exclusive_lock(path) as held:
        assert held


HOLD = """
import sys, time
from pathlib import Path
from aqtopo.checkpoint.files import exclusive_lock
with exclusive_lock(Path(sys.argv[1])) as held:
    print(held, flush=True)
    time.sleep(600)
"""


def test_killed_process_leaves_no_lock(path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    with (
        pytest.raises(BusyError, match=r"(?s)busy.*another process holds .*lock.*Wait"),
        exclusive_lock_on_all_ranks(path, SINGLE_RANK, "busy", "Wait."),
    ):
        pass
    process.kill()
    process.communicate()
    with exclusive_lock_on_all_ranks(path, SINGLE_RANK, "busy", "Wait."):
        pass


def test_wait_for_a_lock_is_announced_and_succeeds(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with path.open("rb+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        release = threading.Timer(0.2, fcntl.flock, (other, fcntl.LOCK_UN))
        release.start()
        with exclusive_lock_on_all_ranks(path, SINGLE_RANK, "the run is at work", "", timeout_s=60.0):
            release.join()
    assert capsys.readouterr().err == "aqtopo: the run is at work: waiting up to 60 s\n"


def test_wait_for_a_lock_ends_after_its_timeout(path: Path) -> None:
    with (
        exclusive_lock(path),
        pytest.raises(BusyError, match=r"another process holds .*lock, also after a wait of 0\.1 s"),
        exclusive_lock_on_all_ranks(path, SINGLE_RANK, "busy", "", timeout_s=0.1),
    ):
        pass


def test_only_rank_0_takes_the_lock(path: Path) -> None:
    with (
        exclusive_lock_on_all_ranks(path, SINGLE_RANK, "", ""),
        exclusive_lock_on_all_ranks(path, SingleRank(rank=1, size=2), "", ""),
        pytest.raises(BusyError, match="busy"),
        exclusive_lock_on_all_ranks(path, SINGLE_RANK, "busy", "Wait."),
    ):
        pass


def test_lock_on_a_missing_file_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(BusyError, match="No such file or directory"),
        exclusive_lock_on_all_ranks(tmp_path / "absent", SINGLE_RANK, "busy", ""),
    ):
        pass


def test_file_system_without_locks_gives_a_warning(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.warns(UserWarning, match="cannot be locked"), exclusive_lock(path) as held:
        assert held
