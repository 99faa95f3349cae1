"""Holds that keep two processes from working on the same state, and end with their process."""

import errno
import fcntl
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from aqtopo.checkpoint.ranks import ALONE, Alone
from aqtopo.refusal import BusyError
from aqtopo.run_directory.locks import alone, alone_together, shared


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "lock"
    path.touch()
    return path


def test_one_holds_alone_or_several_share(path: Path) -> None:
    with alone(path) as first, alone(path) as second:
        assert (first, second) == (True, False)
    with shared(path), shared(path), alone(path) as held:
        assert not held
    with alone(path) as held:
        assert held


HOLD = """
import sys, time
from pathlib import Path
from aqtopo.run_directory.locks import alone
with alone(Path(sys.argv[1])) as held:
    print(held, flush=True)
    time.sleep(600)
"""


def test_killed_process_leaves_no_hold(path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    with (
        pytest.raises(BusyError, match=r"(?s)busy.*another process holds .*lock.*Wait"),
        alone_together(path, ALONE, "busy", "Wait."),
    ):
        pass
    process.kill()
    process.communicate()
    with alone_together(path, ALONE, "busy", "Wait."):
        pass


def test_a_hold_that_ends_in_time_is_waited_for_and_that_is_said(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with path.open("rb+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        release = threading.Timer(0.2, fcntl.flock, (other, fcntl.LOCK_UN))
        release.start()
        with alone_together(path, ALONE, "the run is at work", "", patience_s=60.0):
            release.join()
    assert capsys.readouterr().err == "aqtopo: the run is at work: waiting up to 60 s for it\n"


def test_patience_has_an_end(path: Path) -> None:
    with (
        alone(path),
        pytest.raises(BusyError, match=r"another process holds .*lock, and still does after 0\.1 s"),
        alone_together(path, ALONE, "busy", "", patience_s=0.1),
    ):
        pass


def test_only_rank_0_holds(path: Path) -> None:
    with (
        alone_together(path, ALONE, "", ""),
        alone_together(path, Alone(rank=1, size=2), "", ""),
        pytest.raises(BusyError, match="busy"),
        alone_together(path, ALONE, "busy", "Wait."),
    ):
        pass


def test_what_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(BusyError, match="No such file or directory"),
        alone_together(tmp_path / "absent", ALONE, "busy", ""),
    ):
        pass


def test_file_system_without_locks_is_said_aloud(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.warns(UserWarning, match="cannot be locked"), alone(path) as held:
        assert held
