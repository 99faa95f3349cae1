"""Ranks under test: their processes, their current phase, and the kill."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aqtopo.checkpoint.save import HASH_FILES
from aqtopo.checkpoint.tags import CHECKPOINTS, DISCARDED, UNIVERSAL
from aqtopo.config import RunConfig
from aqtopo.fault_testing.forked import fork_ranks
from aqtopo.refusal import RefusedError
from aqtopo.run_directory.log_file import METRICS_FILE, StepLine, of_kind, read_log
from aqtopo.safe_files import UNFINISHED

START_LIMIT_S = 300.0

POLL_S = 0.0005
"""Interval of checks for a phase that may last a few milliseconds [s]."""

FILE_PHASES = ("converting", "committing", "saving", "pruning")
"""Phases that are visible as temporary files among the checkpoints."""


@dataclass(frozen=True)
class Kill:
    """One SIGKILL: the phase of the run, and the rank that was killed first."""

    phase: str
    rank: int


class RanksUnderTest:
    """The processes of one start of a run, on `world` ranks; their output goes to a log."""

    def __init__(self, config: RunConfig, world: int, steps: int, log: Path) -> None:
        self.log = log
        self.processes = fork_ranks(config, world, steps, log)

    def wait_until(self, reached: Callable[[], bool], pause_s: float = 0.02) -> None:
        """Wait until `reached` returns True, or the run has ended."""
        deadline = time.monotonic() + START_LIMIT_S
        while all(p.exitcode is None for p in self.processes) and time.monotonic() < deadline:
            if reached():
                return
            time.sleep(pause_s)

    def kill_one(self, rng: random.Random, run_dir: Path) -> Kill | None:
        """Kill a random rank, then the others; return None if the run had ended.

        Raises:
            RefusedError: the run had failed.
        """
        rank = rng.randrange(len(self.processes))
        if self.processes[rank].exitcode is not None:
            self.wait()
            return None
        self.processes[rank].kill()
        phase = file_phase(run_dir) or ("training" if logged_steps(run_dir) else "starting")
        time.sleep(rng.uniform(0.0, 0.5))
        self._kill_all()
        return Kill(phase, rank)

    def _kill_all(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()

    def wait(self) -> None:
        """Wait for the end of all ranks.

        Raises:
            RefusedError: a rank failed.
        """
        deadline = time.monotonic() + START_LIMIT_S
        while any(p.exitcode is None for p in self.processes) and time.monotonic() < deadline:
            if any(p.exitcode for p in self.processes):
                break
            time.sleep(0.05)
        codes = [process.exitcode for process in self.processes]
        self._kill_all()
        if any(codes) or None in codes:
            raise RefusedError(
                f"the run ended with exit codes {codes}:\n{self.log.read_text(encoding='utf-8')[-3000:]}"
            )


def logged_steps(run_dir: Path) -> int:
    """Return the number of logged steps, repeated steps included."""
    return len(of_kind(read_log(run_dir / METRICS_FILE), StepLine))


def file_phase(run_dir: Path) -> str | None:
    """Return the phase that the files among the checkpoints show; None without temporary files."""
    while True:
        try:
            return _file_phase(run_dir / CHECKPOINTS)
        except FileNotFoundError:  # renamed between the listing and the check
            continue


def _file_phase(folder: Path) -> str | None:
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    for name in names:
        if f"{UNIVERSAL}." in name and name.endswith(UNFINISHED):
            return "converting"
        if name.endswith(UNFINISHED) and (folder / name).is_dir():
            return "committing" if any((folder / name).glob(HASH_FILES)) else "saving"
    return "pruning" if any(name.endswith(DISCARDED) for name in names) else None
