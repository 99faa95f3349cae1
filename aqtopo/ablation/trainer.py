"""Trains and scores what is not done yet: one `aqtopo train` after another, or a few side by side."""

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import FrameType
from typing import Self

from aqtopo.ablation.plan import Ablation, Trial
from aqtopo.ablation.scoring import Scorer, is_scored
from aqtopo.config import RunConfig
from aqtopo.fault_testing.forked import fork_ranks
from aqtopo.refusal import RefusedError
from aqtopo.run_directory.log_file import METRICS_FILE
from aqtopo.run_directory.run_state import read_run_state

LOGS = "logs"
LINES_OF_A_FAILURE = 15

Say = Callable[[str], None]
"""Told, in a line, what happens."""


def is_trained(trial: Trial) -> bool:
    """Whether the training has come to its own end: its last step, or the end of its patience."""
    if not (trial.run_dir / METRICS_FILE).is_file():
        return False
    state = read_run_state(trial.run_dir)
    ended = state.state.startswith("ended") and state.step > 0
    return ended and (state.step == state.total_steps or "no better val_loss" in state.state)


def is_done(trial: Trial) -> bool:
    """Whether it is trained and scored."""
    return is_trained(trial) and is_scored(trial)


def run_trials(ablation: Ablation, jobs: int, say: Say) -> None:
    """Bring every trial to its end; what is done is left alone, what is half done goes on where it was.

    Args:
        ablation: whose folder is claimed.
        jobs: trainings side by side.
        say: told what begins and ends.

    Raises:
        ValueError: the run needs several nodes.
        RefusedError: a training failed; the others were asked to save and stop.
    """
    if ablation.base.training.nodes > 1:
        raise ValueError(
            f"{ablation.base.name} needs {ablation.base.training.nodes} nodes, which one machine does not "
            "have. Train with --slurm, then give the command again without it."
        )
    todo = [trial for trial in ablation.trials if not is_done(trial)]
    say(f"{len(ablation.trials)} trainings, {len(ablation.trials) - len(todo)} done")
    (ablation.out / LOGS).mkdir(exist_ok=True)
    with _Children() as children, ThreadPoolExecutor(jobs) as pool:
        scorer = Scorer()
        futures = [pool.submit(_finish, trial, ablation, children, scorer, say) for trial in todo]
        finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
        failures = [failure for future in finished if (failure := future.exception())]
        if children.stopped:
            raise SystemExit("stopped as asked; the same command goes on where it was")
        if failures:
            children.stop()
            pool.shutdown(wait=True, cancel_futures=True)
            raise failures[0]


def _finish(trial: Trial, ablation: Ablation, children: "_Children", scorer: Scorer, say: Say) -> None:
    """Train and score one, unless asked to stop before it begins."""
    if children.stopped:
        return
    place = f"{ablation.trials.index(trial) + 1}/{len(ablation.trials)}"
    if not is_trained(trial):
        goes_on = " goes on" if (trial.run_dir / METRICS_FILE).is_file() else ""
        say(f"{place} {trial}{goes_on}")
        _train(trial, ablation, children)
    scorer.score(trial)
    say(f"{place} {trial}: val_loss {read_run_state(trial.run_dir).best_val_loss:.4f}")


def _train(trial: Trial, ablation: Ablation, children: "_Children") -> None:
    """One training in processes of its own.

    Raises:
        RefusedError: it failed, or was stopped before its end.
    """
    log = ablation.out / LOGS / f"{trial.variant.slug}-seed{trial.seed}.log"
    codes = children.run(trial.config, log)
    if any(codes) or not is_trained(trial):
        lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
        tail = "\n".join(lines[-LINES_OF_A_FAILURE:])
        raise RefusedError(f"the training of {trial} ended with {codes} before its end ({log}):\n{tail}")


class _Children:
    """The trainings at work, so that none is left behind; as a context, ends them with this process."""

    def __init__(self) -> None:
        self.stopped = False
        self._lock = threading.RLock()  # a signal may come while it is held
        self._running: set[ForkServerProcess] = set()

    def run(self, config: RunConfig, log: Path) -> list[int | None]:
        """Train to the end; the exit codes of all ranks."""
        with self._lock:
            if self.stopped:
                return [-signal.SIGTERM]
            ranks = fork_ranks(config, config.world_size, None, log)
            self._running.update(ranks)
        try:
            while alive := [rank.sentinel for rank in ranks if rank.is_alive()]:
                connection.wait(alive)
                if any(rank.exitcode for rank in ranks):  # the others wait for it in vain
                    for rank in ranks:
                        rank.kill()
            return [rank.exitcode for rank in ranks]
        finally:
            with self._lock:
                self._running.difference_update(ranks)

    def stop(self) -> None:
        """Ask all to save and stop, and start no more."""
        with self._lock:
            self.stopped = True
            for rank in self._running:
                rank.terminate()

    def __enter__(self) -> Self:
        self._exit = self._on_signals()
        self._exit.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._exit.__exit__(None, None, None)

    @contextmanager
    def _on_signals(self) -> Iterator[None]:
        """Pass SIGTERM and SIGINT on, so that trainings save before this process ends."""

        def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
            self.stop()

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
