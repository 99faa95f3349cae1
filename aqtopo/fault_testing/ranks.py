"""Running processes of a drilled run: started from one that has imported everything, watched and killed."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aqtopo.checkpoint.commit import HASHES
from aqtopo.checkpoint.log_file import METRICS_FILE, StepLine, of_kind, read_log
from aqtopo.checkpoint.tags import CHECKPOINTS, DISCARDED, UNFINISHED, UNIVERSAL, list_tags
from aqtopo.config import RunConfig
from aqtopo.refusal import RefusedError
from aqtopo.training.forked import fork_ranks

START_LIMIT_S = 300.0

LOOK_S = 0.0005
"""Between two looks for a phase that may last a few milliseconds."""

TRACES = ("converting", "committing", "saving", "pruning")
"""Phases that leave a trace among the checkpoints while they last."""


@dataclass(frozen=True)
class Kill:
    """One SIGKILL.

    Attributes:
        phase: what the run was doing.
        rank: who was hit first.
    """

    phase: str
    rank: int


class DrilledRanks:
    """The processes of one start of a run.

    Args:
        config: the run.
        world: how many.
        steps: after which it ends.
        log: for what they print.
    """

    def __init__(self, config: RunConfig, world: int, steps: int, log: Path) -> None:
        self.log = log
        self.processes = fork_ranks(config, world, steps, log)

    def await_step(self, run_dir: Path, seen: int) -> None:
        """Wait until the run has logged more than `seen` steps, or ended."""
        self._await(lambda: steps_logged(run_dir) > seen, 0.02)

    def await_state(self, run_dir: Path) -> None:
        """Wait until the run has a saved state, or ended."""
        self._await(lambda: bool(list_tags(run_dir)), 0.02)

    def await_trace(self, run_dir: Path, phase: str) -> None:
        """Wait until the run is in a phase, one of `TRACES`, or has ended."""
        self._await(lambda: trace(run_dir) == phase, LOOK_S)

    def _await(self, reached: Callable[[], bool], pause_s: float) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        while all(p.exitcode is None for p in self.processes) and time.monotonic() < deadline:
            if reached():
                return
            time.sleep(pause_s)

    def kill_one(self, chosen: random.Random, run_dir: Path) -> Kill | None:
        """Kill a random rank, the rest a moment later; None if all had ended before.

        Raises:
            RefusedError: they had ended, and not well.
        """
        rank = chosen.randrange(len(self.processes))
        if self.processes[rank].exitcode is not None:
            self.wait()
            return None
        self.processes[rank].kill()
        phase = trace(run_dir) or ("training" if steps_logged(run_dir) else "starting")
        time.sleep(chosen.uniform(0.0, 0.5))
        self._end()
        return Kill(phase, rank)

    def _end(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()

    def wait(self) -> None:
        """Wait for all, who must end well.

        Raises:
            RefusedError: some did not.
        """
        deadline = time.monotonic() + START_LIMIT_S
        while any(p.exitcode is None for p in self.processes) and time.monotonic() < deadline:
            if any(p.exitcode for p in self.processes):
                break
            time.sleep(0.05)
        codes = [process.exitcode for process in self.processes]
        self._end()
        if any(codes) or None in codes:
            raise RefusedError(f"the run ended with {codes}:\n{self.log.read_text()[-3000:]}")


def steps_logged(run_dir: Path) -> int:
    """How many updates a run has logged, repeated ones too."""
    return len(of_kind(read_log(run_dir / METRICS_FILE), StepLine))


def trace(run_dir: Path) -> str | None:
    """What a run is doing with its saved states, by what lies there; None if nothing."""
    while True:
        try:
            return _trace(run_dir / CHECKPOINTS)
        except FileNotFoundError:  # renamed between being listed and being looked into
            continue


def _trace(folder: Path) -> str | None:
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    for name in names:
        if name.endswith(UNIVERSAL + UNFINISHED):
            return "converting"
        if name.endswith(UNFINISHED) and (folder / name).is_dir():
            return "committing" if any((folder / name).glob(HASHES)) else "saving"
    return "pruning" if any(name.endswith(DISCARDED) for name in names) else None
