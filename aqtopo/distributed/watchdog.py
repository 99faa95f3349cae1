"""Watchdog that ends all ranks with a diagnosis when one rank fails, hangs or is lost.

All collective work belongs to a named phase with a deadline. On each rank, one thread writes heartbeats to
the heartbeat store and reads the abort reason; a second thread checks the deadline. A rank that misses its
deadline compares the heartbeats to find ranks without a new heartbeat or in an earlier phase. Then it sets
the abort reason and exits. A rank that raises an error also sets the abort reason. All other ranks exit
within seconds, even if they are blocked.
"""

import faulthandler
import json
import os
import queue
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self, TypeVar

from aqtopo.distributed.deadlines import STACKS, read_deadlines
from aqtopo.distributed.heartbeat_store import HeartbeatStore, is_connection_error
from aqtopo.distributed.launch import Launch, export_launch
from aqtopo.refusal import LostRankError, RefusedError
from aqtopo.safe_files import open_plain
from aqtopo.text import abridged

Result = TypeVar("Result")

MAX_POLL_S = 2.0
"""Longest time between two heartbeats of a rank [s]; with 400 ranks, rank 0 receives 200 a second."""

STORE_TIMEOUT_S = 10.0
"""Timeout for a request to the heartbeat store and for writing the stack dump [s]."""

CALLBACK_TIMEOUT_S = 90.0
"""Timeout for each callback before the process ends [s]."""

EXIT_HUNG = 1
COLLECTIVE_ERRORS = (RefusedError, FloatingPointError)
"""Errors that all ranks raise together; their message suffices, so no traceback file is written."""


def start_watchdog(launch: Launch, run_dir: Path, work: float = 1.0) -> "Watchdog":
    """Wait for all ranks and return this rank's watchdog; for `work`, see `read_deadlines`.

    Raises:
        ValueError: AQTOPO_DEADLINES is invalid.
        LostRankError: some ranks did not arrive in time.
    """
    deadlines = read_deadlines(work=work)
    export_launch(launch)
    store = HeartbeatStore(launch, deadlines["connect"])
    store.wait_for_all_ranks(deadlines["connect"])
    return Watchdog(store, run_dir, deadlines)


@dataclass(frozen=True)
class Heartbeat:
    """State of a rank in the heartbeat store.

    Attributes:
        host: its node.
        process: its process id there.
        phase: its current phase.
        phase_count: number of phases entered so far; equal on ranks that are in step.
        time_ns: monotonic clock of the last heartbeat [ns].
    """

    host: str
    process: int
    phase: str = "start"
    phase_count: int = 0
    time_ns: int = 0


class Watchdog:
    """Watchdog of one rank; a context manager around all collective work.

    Stack dumps are written to the folder `stacks` of the run directory; deadlines [s] are by phase.
    """

    def __init__(self, store: HeartbeatStore, run_dir: Path, deadlines: Mapping[str, float]) -> None:
        self._store = store
        self._file = run_dir / STACKS / f"rank{store.rank:05d}.txt"
        self._deadlines = deadlines
        self._poll_s = min(MAX_POLL_S, min(deadlines.values()) / 4)
        self._own = Heartbeat(socket.gethostname(), os.getpid())
        self._due = float("inf")
        self._abort_reason: str | None = None
        self._aborting = False
        self._diagnosis = ""
        self._callbacks: list[Callable[[], None]] = []
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._exchange_heartbeats, name="heartbeat", daemon=True),
            threading.Thread(target=self._watch, name="watchdog", daemon=True),
        ]

    @property
    def longest_s(self) -> float:
        """Timeout for collectives [s], longer than any deadline so that the watchdog acts first."""
        return max(self._deadlines.values()) + CALLBACK_TIMEOUT_S

    def enter(self, phase: str, detail: str = "") -> None:
        """Start a phase and its deadline; the previous phase ends."""
        shown = f"{phase} {detail}".rstrip()
        self._own = Heartbeat(self._own.host, self._own.process, shown, self._own.phase_count + 1)
        self._due = time.monotonic() + self._deadlines[phase]

    def on_abort(self, callback: Callable[[], None]) -> None:
        """Add a callback that runs before the watchdog ends the process."""
        self._callbacks.append(callback)

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Report an error to the other ranks before the cleanup, which may block."""
        try:
            yield
        except BaseException as error:
            self._report(error)
            raise

    def _report(self, error: BaseException) -> None:
        """Set the abort reason for an error of this rank; for a lost connection, find its cause."""
        if self._aborting or self._store.size == 1:
            return
        self._aborting, self._due = True, float("inf")
        first_line = next(iter(str(error).splitlines()), "")
        if is_connection_error(error):
            self._diagnosis = f"{first_line}: {self._diagnose()}."
        else:
            place = _describe(self._store.rank, self._own)
            self._diagnosis = f"failed: {place}: {type(error).__name__}: {first_line}"
            self._set_abort_reason(self._diagnosis)
        self._request(self._store.mark_done)
        if not isinstance(error, COLLECTIVE_ERRORS):
            trace = traceback.format_exception(error)
            self._write(self._diagnosis, lambda file: file.writelines(trace))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._due = float("inf")
        try:
            if error is not None and self._store.size > 1:
                self._report(error)
                self._serve_until_done()
                if is_connection_error(error):
                    raise LostRankError(self._diagnosis) from error
        finally:
            self._over.set()
            for thread in self._threads:
                thread.join(STORE_TIMEOUT_S)  # a thread may be blocked by a dead server

    def _exchange_heartbeats(self) -> None:
        """Write heartbeats and read the abort reason; a lost server is detected by the deadline."""
        while not self._over.wait(self._poll_s):
            with suppress(LostRankError):
                self._store.write_heartbeat(json.dumps(asdict(self._own) | {"time_ns": time.monotonic_ns()}))
                self._abort_reason = self._store.abort_reason()

    def _watch(self) -> None:
        while not self._over.wait(self._poll_s):
            if self._abort_reason and not self._aborting:
                self._follow(self._abort_reason)
            elif time.monotonic() > self._due:
                phase = self._own.phase
                self._abort(f"past the deadline of the phase `{phase}`: {self._diagnose()}.")

    def _follow(self, reason: str) -> None:
        """Abort because another rank did, unless this rank's main thread raises an error soon."""
        until = time.monotonic() + 3 * self._poll_s
        while time.monotonic() < until:
            if self._over.wait(0.1 * self._poll_s) or self._aborting:
                return
        self._abort(f"ended in the phase `{self._own.phase}`, because another rank failed: {reason}.")

    def _abort(self, reason: str) -> None:
        """Print the reason, dump the stacks and end the process, whose main thread may be blocked."""
        text = f"aqtopo [rank {self._store.rank}]: {reason} Stacks: {self._file}"
        print(text, file=sys.stderr, flush=True)  # noqa: T201
        # faulthandler reads no source files, which may be on the disk that hangs.
        self._write(f"rank {self._store.rank} on {self._own.host}: {reason}", faulthandler.dump_traceback)
        for callback in self._callbacks:
            _call_with_timeout(CALLBACK_TIMEOUT_S, callback)
        self._request(self._store.mark_done)
        self._serve_until_done()
        os._exit(EXIT_HUNG)

    def _write(self, first_line: str, write_rest: Callable[[IO[str]], None]) -> None:
        """Write this rank's file in `stacks`, if the run directory exists and its disk answers."""

        def write() -> None:
            if self._file.parents[1].is_dir():  # a refused run must not create its directory
                with suppress(OSError, ValueError):  # the latter for a link
                    self._file.parent.mkdir(exist_ok=True)
                    with open_plain(self._file, "w", encoding="utf-8") as file:
                        print(first_line, file=file, flush=True)
                        write_rest(file)

        _call_with_timeout(STORE_TIMEOUT_S, write)

    def _set_abort_reason(self, text: str) -> str:
        return self._request(lambda: self._store.set_abort_reason(text)) or text

    def _serve_until_done(self) -> None:
        """On rank 0, keep the store alive until all ranks have read it, or until a timeout."""
        until = time.monotonic() + 8 * self._poll_s
        while self._store.rank == 0 and time.monotonic() < until:
            done = self._request(self._store.done_ranks)
            if done is None or done == self._store.size:
                return
            time.sleep(0.1 * self._poll_s)

    def _diagnose(self) -> str:
        """Return the abort reason, or set it by comparing the heartbeats now and three polls later."""
        before = self._request(self._read_heartbeats)
        for _ in range(6 if before else 0):
            if self._abort_reason:
                return self._abort_reason
            time.sleep(self._poll_s / 2)
        now = self._request(self._read_heartbeats) if before else None
        return self._set_abort_reason(_find_culprits(before, now, self._store.rank))

    def _read_heartbeats(self) -> dict[int, Heartbeat | None]:
        texts = {rank: self._store.read_heartbeat(rank) for rank in range(self._store.size)}
        return {rank: Heartbeat(**json.loads(text)) if text else None for rank, text in texts.items()}

    def _request(self, action: Callable[[], Result]) -> Result | None:
        """Return the result of a request to the store; None if the server is lost or does not answer."""

        def request() -> Result | None:
            with suppress(LostRankError):
                return action()
            return None

        return _call_with_timeout(STORE_TIMEOUT_S, request)


def _call_with_timeout(timeout_s: float, action: Callable[[], Result]) -> Result | None:
    """Return the result of an action that may block; None after the timeout."""
    results: queue.SimpleQueue[Result] = queue.SimpleQueue()
    threading.Thread(target=lambda: results.put(action()), daemon=True).start()
    try:
        return results.get(timeout=timeout_s)
    except queue.Empty:
        return None


def _find_culprits(
    before: Mapping[int, Heartbeat | None] | None, now: Mapping[int, Heartbeat | None] | None, reader: int
) -> str:
    """Name the ranks without a new heartbeat; if there are none, the ranks that are behind."""
    if before is None or now is None:
        return "rank 0, which serves the heartbeat store, or its node does not answer"
    known = {rank: heartbeat for rank, heartbeat in now.items() if heartbeat is not None}
    if silent := [rank for rank, heartbeat in now.items() if heartbeat == before[rank] and rank != reader]:
        return f"no new heartbeat from {abridged([_describe(rank, now[rank]) for rank in silent])}"
    furthest = max((heartbeat.phase_count for heartbeat in known.values()), default=0)
    if behind := [rank for rank, heartbeat in known.items() if heartbeat.phase_count < furthest]:
        return f"in an earlier phase: {abridged([_describe(rank, known[rank]) for rank in behind])}"
    return "all other ranks have new heartbeats and are in the same phase"


def _describe(rank: int, heartbeat: Heartbeat | None) -> str:
    if heartbeat is None:
        return f"rank {rank} (no heartbeat yet)"
    return f"rank {rank} (on {heartbeat.host}, process {heartbeat.process}, in `{heartbeat.phase}`)"
