"""The watchdog: no rank waits for another in silence.

Whatever ranks do together is a phase with a name and a deadline. A thread in each rank tells the others, on
the board, which phase its rank is in. When a phase is past its deadline the thread writes the stacks of all
threads into the run directory, works out which ranks are behind, silent or have failed, says so and ends the
process. A rank that fails by itself says why before it goes, and the others repeat it.
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
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from aqtopo.refusal import LostRankError, RefusedError
from aqtopo.training.distributed import Board, Launch, abridged, announce, is_connection_error

STACKS = "stacks"
"""Folder of the run directory in which ranks write their stacks."""

VARIABLE = "AQTOPO_DEADLINES"
DEADLINES_S: Mapping[str, float] = {
    "connect": 600,
    "preflight": 300,
    "lock": 600,
    "stage": 1700,  # less than the wait of the ranks that do not copy, COLLECTIVE_TIMEOUT
    "resume": 1800,
    "engine": 600,
    "sanity validation": 1800,  # compiles the kernels
    "data": 600,
    "first step": 1800,  # compiles those of the backward pass
    "step": 600,
    "validation": 3600,
    "save": 1800,
}
"""Longest time in each phase [s]; AQTOPO_DEADLINES="step=60,data=30" changes some."""

LONGEST_POLL_S = 2.0
"""Longest time between a rank's signs of life [s]: of 400 ranks, rank 0 gets 200 in a second."""

ANSWER_S = 10.0
"""How long the board's keeper may take to answer for all ranks [s]."""

EXIT_HUNG = 1
AGREED = (RefusedError, FloatingPointError)
"""Errors that all ranks raise together: nobody is left to be told."""


def read_deadlines(environ: Mapping[str, str] = os.environ) -> dict[str, float]:
    """The deadlines, with what the environment changes of them.

    Raises:
        ValueError: the variable names no phase or gives no time.
    """
    deadlines = dict(DEADLINES_S)
    for part in filter(None, environ.get(VARIABLE, "").split(",")):
        name, _, text = part.strip().partition("=")
        if name not in deadlines or not text.replace(".", "", 1).isdigit() or float(text) <= 0:
            raise ValueError(
                f"{VARIABLE}: {part.strip()!r} is no phase with its deadline in seconds, such as step=60. "
                f"The phases are {', '.join(deadlines)}."
            )
        deadlines[name] = float(text)
    return deadlines


def watch_together(launch: Launch, run_dir: Path) -> "Watchdog":
    """Wait until every rank is here, and watch from then on.

    Raises:
        ValueError: a deadline is none.
        LostRankError: some rank is not here in time.
    """
    deadlines = read_deadlines()
    announce(launch)
    board = Board(launch, deadlines["connect"])
    board.meet(deadlines["connect"])
    return Watchdog(board, run_dir, deadlines)


@dataclass(frozen=True)
class Words:
    """What a rank says of itself on the board.

    Attributes:
        host: its node.
        process: its process id there.
        phase: what it is doing.
        entered: how many phases it has entered; equal on ranks that are equally far.
        beat: grows as long as its watchdog lives [ns].
        failure: why it is about to end; empty if it is not.
    """

    host: str
    process: int
    phase: str = "start"
    entered: int = 0
    beat: int = 0
    failure: str = ""


class Watchdog:
    """Watches one rank; use as a context manager around everything that ranks do together.

    Args:
        board: where ranks read about each other.
        run_dir: the run directory; stacks go to its folder `stacks`.
        deadlines: seconds by phase.
    """

    def __init__(self, board: Board, run_dir: Path, deadlines: Mapping[str, float]) -> None:
        self._board = board
        self._stacks = run_dir / STACKS
        self._deadlines = deadlines
        self._poll_s = min(LONGEST_POLL_S, min(deadlines.values()) / 4)
        self._own = Words(socket.gethostname(), os.getpid())
        self._due = float("inf")
        self._failure = ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def enter(self, phase: str, detail: str = "") -> None:
        """Say what comes now; the phase before is over."""
        shown = f"{phase} {detail}".rstrip()
        self._own = Words(self._own.host, self._own.process, shown, self._own.entered + 1)
        self._due = time.monotonic() + self._deadlines[phase]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._due = float("inf")
        try:
            if error is not None and self._board.size > 1 and not isinstance(error, AGREED):
                self._part(error)
        finally:
            self._over.set()
            self._thread.join(ANSWER_S)  # it may wait for a keeper that never answers

    def _part(self, error: BaseException) -> None:
        """Tell the others why this rank ends; or, if it ends because of another, find out which."""
        first_line = next(iter(str(error).splitlines()), "")
        if is_connection_error(error):
            raise LostRankError(self._explain(first_line)) from error
        self._failure = f"{type(error).__name__}: {first_line}"
        self._say()
        if self._stacks.parent.is_dir():  # an error before that leaves no trace, as every refusal
            told = f"rank {self._board.rank} on {self._own.host} failed in {self._own.phase}: {self._failure}"
            with suppress(OSError):  # a full disk must not hide why
                self._file().write_text("\n".join([told, *traceback.format_exception(error)]))
        if self._board.rank == 0:
            time.sleep(4 * self._poll_s)  # it keeps the board, and the others still want to read it

    def _watch(self) -> None:
        while not self._over.wait(self._poll_s):
            self._say()
            if time.monotonic() > self._due:
                self._give_up()

    def _say(self) -> None:
        """Put this rank's words up; without a keeper nobody hears them, and the rank itself will notice."""
        with suppress(LostRankError):
            signs = {"beat": time.monotonic_ns(), "failure": self._failure}
            self._board.write(json.dumps(asdict(self._own) | signs))

    def _give_up(self) -> None:
        """Write the stacks, say who is missing, and end the process, whose main thread may never return."""
        phase = self._own.phase
        file = self._file()
        with file.open("w") as stacks:
            stacks.write(f"rank {self._board.rank} on {self._own.host} is past its deadline in: {phase}\n")
            stacks.flush()
            faulthandler.dump_traceback(stacks, all_threads=True)
        text = self._explain(f"past the deadline of the phase `{phase}`")
        print(f"aqtopo [rank {self._board.rank}]: {text} Stacks: {file}", file=sys.stderr, flush=True)  # noqa: T201
        os._exit(EXIT_HUNG)

    def _file(self) -> Path:
        self._stacks.mkdir(parents=True, exist_ok=True)
        return self._stacks / f"rank{self._board.rank:05d}.txt"

    def _explain(self, symptom: str) -> str:
        """Which ranks are to blame, by what the board says now and some polls later."""
        before = self._everyones()
        for _ in range(6 if before else 0):
            time.sleep(self._poll_s / 2)
            self._say()  # stay heard while others judge who is silent
        now = self._everyones() if before else None
        culprits = _culprits(before, now, self._board.rank)
        return f"{symptom}: {culprits or 'no other rank is silent, behind or has failed'}."

    def _everyones(self) -> dict[int, Words | None] | None:
        """What all ranks say; None if the board's keeper does not answer, which may be by never returning."""
        found: queue.SimpleQueue[dict[int, Words | None] | None] = queue.SimpleQueue()
        threading.Thread(target=lambda: found.put(self._read_all()), daemon=True).start()
        try:
            return found.get(timeout=ANSWER_S)
        except queue.Empty:
            return None

    def _read_all(self) -> dict[int, Words | None] | None:
        try:
            texts = {rank: self._board.read(rank) for rank in range(self._board.size)}
        except LostRankError:
            return None
        return {rank: Words(**json.loads(text)) if text else None for rank, text in texts.items()}


def _culprits(
    before: Mapping[int, Words | None] | None, now: Mapping[int, Words | None] | None, reader: int
) -> str:
    """The ranks that have failed; else those that are silent; else those that are behind."""
    if before is None or now is None:
        return "rank 0, which keeps the ranks' board, or its node does not answer"
    heard = {rank: words for rank, words in now.items() if words is not None}
    if failed := [rank for rank, words in heard.items() if words.failure]:
        told = [f"{_place(rank, heard[rank])}: {heard[rank].failure}" for rank in failed]
        return f"failed: {abridged(told, 4)}"
    if silent := [rank for rank, words in now.items() if words == before[rank] and rank != reader]:
        return f"does not answer: {abridged([_place(rank, now[rank]) for rank in silent])}"
    furthest = max((words.entered for words in heard.values()), default=0)
    behind = [rank for rank, words in heard.items() if words.entered < furthest]
    return f"is behind: {abridged([_place(rank, heard[rank]) for rank in behind])}" if behind else ""


def _place(rank: int, words: Words | None) -> str:
    if words is None:
        return f"rank {rank} (not heard of yet)"
    return f"rank {rank} (on {words.host}, process {words.process}, in `{words.phase}`)"
