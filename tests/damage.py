"""Tests of changed files, and the processes that read them.

A module that imports the tests has `TARGETS`, which maps names to functions that make files in a folder,
`FIXTURES`, the names of the fixtures that they are given too, and for `test_known_faults` `KNOWN_FAULTS`,
rows of a target, the end of a file's path, and a change of its content. `pytest_generate_tests` in
conftest.py reads them.
"""

import gc
import multiprocessing
import os
import resource
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aqtopo.cli.main import raised_by_us
from aqtopo.refusal import RefusedError
from aqtopo.safe_files import remove
from tests.changes import changed_file

EXAMPLES = int(os.environ.get("AQTOPO_FUZZ_EXAMPLES", "0")) or 300

fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="AQTOPO_FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

MORE_BYTES = 2**30
"""Memory that a changed file may take beyond what the unchanged one takes."""

LONGEST_S = 30.0
"""Limit of the processor time of one read [s]: beyond it, the read counts as hung."""

STALLED_S = 300
"""Limit of the wall time of one read [s], because a busy machine may stop a process for minutes."""

READINGS = 1000
"""Reads per process: libraries leak memory on damaged files."""

Read = Callable[[], object]

KINDS = ("missing", "link to itself", "dangling link", "folder", "pipe", "endless device", "linked")
"""Things that `other_kind` puts in the place of a file."""


@contextmanager
def other_kind(path: Path, kind: str) -> Iterator[None]:
    """Put something else in the place of a file for a time, or a link to the file itself, moved away."""
    moved = path.with_name("moved")
    path.rename(moved)
    try:
        _put(path, kind, moved)
        yield
    finally:
        remove(path)
        moved.rename(path)


def _put(path: Path, kind: str, moved: Path) -> None:
    match kind:
        case "link to itself":
            path.symlink_to(path)
        case "dangling link":
            path.symlink_to(path.with_name("nowhere"))
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "endless device":
            path.symlink_to("/dev/zero")
        case "linked":
            path.symlink_to(moved)


def complaint(read: Read) -> str:
    """Read, and return what is wrong with the program; "" for a result or a refusal in its own words."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read()
        except (RefusedError, OSError, ValueError) as error:
            refused = not isinstance(error, ValueError) or raised_by_us(error)
            return "" if refused and not _asked_for_memory(error) else traceback.format_exc()
        except BaseException:  # noqa: BLE001  (the command line would show a traceback)
            return traceback.format_exc()
    return ""


def _asked_for_memory(error: BaseException | None) -> bool:
    """Return True if an array was too large for this process, but not for a large machine."""
    while error is not None:
        size = getattr(error, "_total_size", 0) if isinstance(error, MemoryError) else 0
        if MORE_BYTES < size < 2**40:
            return True
        error = error.__cause__ or error.__context__
    return False


def assert_read_or_refused(read: Read) -> None:
    """Read, and accept only the program's own refusals."""
    found = complaint(read)
    assert not found, f"the command line would end with a traceback:\n{found}"


class Reader:
    """A forked process that reads a file many times, so that a crash or a hang does not end the test.

    Args:
        read: reads the file; the first call is with the unchanged one.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(self._read, theirs, self._pipe), daemon=True)
        self._process.start()
        theirs.close()
        self._count = 0

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def complaint(self) -> str:
        """Read once; return what is wrong with the program, or ""."""
        try:
            self._pipe.send(None)
            if self._answers():
                text, more = self._pipe.recv()
                found = text or (f"{more >> 20} MiB more than before are taken" if more > MORE_BYTES else "")
            else:
                found = "it takes too long"
        except (EOFError, ConnectionError):
            self._process.join()
            found = f"the process ended with {self._process.exitcode}"
        self._count += 1
        if found or self._count == READINGS:
            self.close()
            self._start()
        return found

    def _answers(self) -> bool:
        """Wait for the answer; return False if there is none."""
        before = self._processor_s()
        for _ in range(STALLED_S):  # counts polls, because a busy machine may stop this process too
            if self._pipe.poll(1.0):
                return True
            if self._processor_s() - before > LONGEST_S:
                return False
        return False

    def _processor_s(self) -> float:
        """Return the processor time of the process [s]."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def assert_read_or_refused(self) -> None:
        """Read once, and accept only a result or the program's own refusals."""
        found = self.complaint()
        assert not found, f"neither a result nor a refusal: {found}"


def _serve(read: Read, pipe: Any, other_end: Any) -> None:
    """Read once for each message; answer with the complaint and the memory taken [bytes]."""
    other_end.close()  # else the process outlives the tests
    # A file that takes all memory must not stop other programs.
    resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + 4 * MORE_BYTES, resource.RLIM_INFINITY))
    gc.freeze()  # else each collection scans the objects of all libraries
    while True:
        pipe.recv()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # sets VmHWM, the peak, to VmRSS
        before = _memory("VmHWM")
        found = complaint(read)
        pipe.send((found, _memory("VmHWM") - before))


def _memory(name: str) -> int:
    """Return a size of this process in /proc [bytes]."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


@dataclass(frozen=True)
class FuzzTarget:
    """Files that a command opens, and the function that reads them."""

    files: list[Path]
    read: Read


OpenTarget = Callable[[str], tuple[FuzzTarget, Reader]]
KnownFault = tuple[str, str, Callable[[bytes], bytes]]


@contextmanager
def target_opener(make: Callable[[str], FuzzTarget]) -> Iterator[OpenTarget]:
    """Yield a function that returns a target, made once, and the process that reads its files.

    Only the process of the last target runs, because each may take as much memory as the tests.
    """
    made: dict[str, FuzzTarget] = {}
    running: dict[str, Reader] = {}

    def opened(name: str) -> tuple[FuzzTarget, Reader]:
        if name not in made:
            made[name] = make(name)
            assert made[name].read() is not None
        if name not in running:
            close()
            running[name] = Reader(made[name].read)
            running[name].assert_read_or_refused()
        return made[name], running[name]

    def close() -> None:
        while running:
            running.popitem()[1].close()

    try:
        yield opened
    finally:
        close()


@contextmanager
def _restored(path: Path) -> Iterator[bytes]:
    """Yield the content of a file, and restore it."""
    before = path.read_bytes()
    try:
        yield before
    finally:
        path.write_bytes(before)


@pytest.mark.slow
@fuzzed
@given(data=st.data())
def test_changed_files(open_target: OpenTarget, target_name: str, data: st.DataObject) -> None:
    """Change one of the files at random."""
    target, reader = open_target(target_name)
    path = data.draw(st.sampled_from(target.files)) if len(target.files) > 1 else target.files[0]
    with _restored(path):
        path.write_bytes(data.draw(changed_file(path)))
        reader.assert_read_or_refused()


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_files(open_target: OpenTarget, target_name: str, kind: str) -> None:
    """Put something else in the place of a file of each name."""
    target, reader = open_target(target_name)
    for path in {path.name: path for path in target.files}.values():
        with other_kind(path, kind):
            reader.assert_read_or_refused()
        reader.assert_read_or_refused()


def test_known_faults(open_target: OpenTarget, known_fault: KnownFault) -> None:
    """Make a change that once ended in a traceback, a hang or an allocation of all memory."""
    name, file, change = known_fault
    target, reader = open_target(name)
    (path,) = [path for path in target.files if path.as_posix().endswith(f"/{file}")]
    with _restored(path) as before:
        assert change(before) != before
        path.write_bytes(change(before))
        reader.assert_read_or_refused()
