"""The watchdog: no rank waits for another in silence.

Whatever ranks do together is a phase with a name and a deadline. One thread of each rank tells the others, on
the board, which phase its rank is in, and looks there for an alarm; another watches the deadline. Who is past
it works out which ranks are silent or behind, says so, raises the alarm and ends the process. So does a rank
that fails by itself. The others repeat the alarm within seconds, whatever their main threads wait for.
"""

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
from typing import Self, TypeVar

from aqtopo.refusal import LostRankError, RefusedError
from aqtopo.training.deadlines import read_deadlines
from aqtopo.training.distributed import Board, abridged, announce, is_connection_error
from aqtopo.training.launch import Launch

Answer = TypeVar("Answer")

STACKS = "stacks"
"""Folder of the run directory in which ranks write their stacks."""

LONGEST_POLL_S = 2.0
"""Longest time between a rank's signs of life [s]: of 400 ranks, rank 0 gets 200 in a second."""

ANSWER_S = 10.0
"""How long the board's keeper may take to answer, or a disk to take the stacks [s]."""

RITES_S = 90.0
"""How long what has to be done before the process is ended may take [s]."""

EXIT_HUNG = 1
AGREED = (RefusedError, FloatingPointError)
"""Errors that all ranks should raise together: they say all, and stacks would say no more."""


def watch_together(launch: Launch, run_dir: Path, work: float = 1.0) -> "Watchdog":
    """Wait until every rank is here, and watch from then on.

    Args:
        launch: who this process is.
        run_dir: the run directory.
        work: how many times as much a rank has to do in a step as it was configured to.

    Raises:
        ValueError: a deadline is none.
        LostRankError: some rank is not here in time.
    """
    deadlines = read_deadlines(work=work)
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
    """

    host: str
    process: int
    phase: str = "start"
    entered: int = 0
    beat: int = 0


class Watchdog:
    """Watches one rank; use as a context manager around everything that ranks do together.

    Args:
        board: where ranks read about each other.
        run_dir: the run directory; stacks go to its folder `stacks`.
        deadlines: seconds by phase.
    """

    def __init__(self, board: Board, run_dir: Path, deadlines: Mapping[str, float]) -> None:
        self._board = board
        self._file = run_dir / STACKS / f"rank{board.rank:05d}.txt"
        self._deadlines = deadlines
        self._poll_s = min(LONGEST_POLL_S, min(deadlines.values()) / 4)
        self._own = Words(socket.gethostname(), os.getpid())
        self._due = float("inf")
        self._alarm: str | None = None
        self._parting = False
        self._verdict = ""
        self._rites: list[Callable[[], None]] = []
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._tell_and_listen, name="board", daemon=True),
            threading.Thread(target=self._watch, name="watchdog", daemon=True),
        ]

    @property
    def longest_s(self) -> float:
        """Longer than any deadline [s]: for collectives, so that the watchdog speaks before they give up."""
        return max(self._deadlines.values()) + RITES_S

    def enter(self, phase: str, detail: str = "") -> None:
        """Say what comes now; the phase before is over."""
        shown = f"{phase} {detail}".rstrip()
        self._own = Words(self._own.host, self._own.process, shown, self._own.entered + 1)
        self._due = time.monotonic() + self._deadlines[phase]

    def before_giving_up(self, rite: Callable[[], None]) -> None:
        """Have something done before the watchdog ends the process, such as completing a saved state."""
        self._rites.append(rite)

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Tell the others at once of an error in it: what follows, like parting from them, may take time."""
        try:
            yield
        except BaseException as error:
            self._tell(error)
            raise

    def _tell(self, error: BaseException) -> None:
        """Say to the others why this rank ends; or, if it ends because of another, find out which."""
        if self._parting or self._board.size == 1:
            return
        self._parting, self._due = True, float("inf")
        first_line = next(iter(str(error).splitlines()), "")
        if is_connection_error(error):
            self._verdict = f"{first_line}: {self._explain()}."
        else:
            place = _place(self._board.rank, self._own)
            self._verdict = f"failed: {place}: {type(error).__name__}: {first_line}"
            self._raise_alarm(self._verdict)
        self._ask(self._board.leave)
        if not isinstance(error, AGREED):
            self._write([f"{self._verdict}\n", *traceback.format_exception(error)])

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._due = float("inf")
        try:
            if error is not None and self._board.size > 1:
                self._tell(error)
                self._keep_board()
                if is_connection_error(error):
                    raise LostRankError(self._verdict) from error
        finally:
            self._over.set()
            for thread in self._threads:
                thread.join(ANSWER_S)  # one may wait for a keeper that never answers

    def _tell_and_listen(self) -> None:
        """Give signs of life and look for an alarm; without a keeper the rank itself will notice."""
        while not self._over.wait(self._poll_s):
            with suppress(LostRankError):
                self._board.write(json.dumps(asdict(self._own) | {"beat": time.monotonic_ns()}))
                self._alarm = self._board.alarm()

    def _watch(self) -> None:
        while not self._over.wait(self._poll_s):
            if self._alarm and not self._parting:
                self._follow(self._alarm)
            elif time.monotonic() > self._due:
                phase = self._own.phase
                self._give_up(f"past the deadline of the phase `{phase}`: {self._explain()}.")

    def _follow(self, alarm: str) -> None:
        """End because another rank does, unless the main thread is about to say so in its own words."""
        until = time.monotonic() + 3 * self._poll_s
        while time.monotonic() < until:
            if self._over.wait(0.1 * self._poll_s) or self._parting:
                return
        self._give_up(f"ended in the phase `{self._own.phase}`, because another rank did: {alarm}.")

    def _give_up(self, why: str) -> None:
        """Say why, write the stacks, and end the process, whose main thread may never return."""
        told = f"aqtopo [rank {self._board.rank}]: {why} Stacks: {self._file}"
        print(told, file=sys.stderr, flush=True)  # noqa: T201
        self._write([f"rank {self._board.rank} on {self._own.host}: {why}\n", *_stacks()])
        for rite in self._rites:
            _within(RITES_S, rite)
        self._ask(self._board.leave)
        self._keep_board()
        os._exit(EXIT_HUNG)

    def _write(self, lines: list[str]) -> None:
        """Leave something in the run directory, if there is one and its disk answers."""

        def write() -> None:
            if self._file.parents[1].is_dir():  # an error before that leaves no trace, as every refusal
                with suppress(OSError):
                    self._file.parent.mkdir(exist_ok=True)
                    self._file.write_text("".join(lines))

        _within(ANSWER_S, write)

    def _raise_alarm(self, text: str) -> str:
        """Raise it; what stands there now, which may be another rank's."""
        return self._ask(lambda: self._board.raise_alarm(text)) or text

    def _keep_board(self) -> None:
        """As its keeper, stay until the others have read what they need, or cannot any more."""
        until = time.monotonic() + 8 * self._poll_s
        while self._board.rank == 0 and time.monotonic() < until:
            left = self._ask(self._board.left)
            if left is None or left == self._board.size:
                return
            time.sleep(0.1 * self._poll_s)

    def _explain(self) -> str:
        """Which ranks are to blame: the alarm, or what the board says now and some polls later."""
        before = self._ask(self._read_all)
        for _ in range(6 if before else 0):
            if self._alarm:
                return self._alarm
            time.sleep(self._poll_s / 2)
        now = self._ask(self._read_all) if before else None
        return self._raise_alarm(_culprits(before, now, self._board.rank))

    def _read_all(self) -> dict[int, Words | None]:
        texts = {rank: self._board.read(rank) for rank in range(self._board.size)}
        return {rank: Words(**json.loads(text)) if text else None for rank, text in texts.items()}

    def _ask(self, action: Callable[[], Answer]) -> Answer | None:
        """An answer of the board; None if its keeper is gone, or does not answer, which may be for ever."""

        def ask() -> Answer | None:
            with suppress(LostRankError):
                return action()
            return None

        return _within(ANSWER_S, ask)


def _within(seconds: float, action: Callable[[], Answer]) -> Answer | None:
    """The result of something that may never return; None if it does not in time."""
    found: queue.SimpleQueue[Answer] = queue.SimpleQueue()
    threading.Thread(target=lambda: found.put(action()), daemon=True).start()
    try:
        return found.get(timeout=seconds)
    except queue.Empty:
        return None


def _stacks() -> list[str]:
    """Where every thread is; without the lines of the source, which may lie on the disk that hangs."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    lines = []
    for ident, frame in sys._current_frames().items():
        lines.append(f"\nThread {names.get(ident, ident)} (most recent call last):\n")
        for place, number in traceback.walk_stack(frame):
            code = place.f_code
            lines.append(f'  File "{code.co_filename}", line {number} in {code.co_name}\n')
    return lines


def _culprits(
    before: Mapping[int, Words | None] | None, now: Mapping[int, Words | None] | None, reader: int
) -> str:
    """The ranks that are silent; else those that are behind."""
    if before is None or now is None:
        return "rank 0, which keeps the ranks' board, or its node does not answer"
    heard = {rank: words for rank, words in now.items() if words is not None}
    if silent := [rank for rank, words in now.items() if words == before[rank] and rank != reader]:
        return f"does not answer: {abridged([_place(rank, now[rank]) for rank in silent])}"
    furthest = max((words.entered for words in heard.values()), default=0)
    if behind := [rank for rank, words in heard.items() if words.entered < furthest]:
        return f"is behind: {abridged([_place(rank, heard[rank]) for rank in behind])}"
    return "no other rank is silent, behind or has failed"


def _place(rank: int, words: Words | None) -> str:
    if words is None:
        return f"rank {rank} (not heard of yet)"
    return f"rank {rank} (on {words.host}, process {words.process}, in `{words.phase}`)"
