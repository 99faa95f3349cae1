"""Training and scoring of unfinished trials, in this process's children or as a Slurm job array."""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import FrameType

import numpy as np

from aqtopo.ablation.plan import Ablation, Trial
from aqtopo.checkpoint import best_tag
from aqtopo.config import RunConfig
from aqtopo.data import open_store
from aqtopo.data.samples import sample_table
from aqtopo.data.store import Store
from aqtopo.evaluation.baselines import Climatology, fit_climatology
from aqtopo.evaluation.evaluate import evaluate
from aqtopo.evaluation.results import SCORES, read_table, write_results
from aqtopo.fault_testing.forked import fork_ranks
from aqtopo.inference.load import load_run
from aqtopo.refusal import RefusedError
from aqtopo.run_directory.log_file import METRICS_FILE
from aqtopo.run_directory.run_state import read_run_state

LOGS = "logs"
LOG_LINES = 15

Log = Callable[[str], None]
"""Function that logs a line."""


def is_trained(trial: Trial) -> bool:
    """Return true if the training reached its last step or early stopping."""
    if not (trial.run_dir / METRICS_FILE).is_file():
        return False
    state = read_run_state(trial.run_dir)
    ended = state.state.startswith("ended") and state.step > 0
    return ended and (state.step == state.total_steps or "no better val_loss" in state.state)


def is_scored(trial: Trial) -> bool:
    """Return true if the scores of the best tag on the whole test split exist, all cells weighted alike.

    `aqtopo evaluate` may have replaced them by those of another tag, of validation, of fewer days or with
    area weights.

    Raises:
        ValueError: the scores cannot be read.
    """
    if not (trial.run_dir / f"{SCORES}.zarr").is_dir():
        return False
    attributes, best = read_table(trial.run_dir, "by_day").attrs, best_tag(trial.run_dir)
    count = sample_table(trial.config, open_store(trial.config.data.store).times, "test").times.size
    found = [attributes.get(key) for key in ("split", "tag", "initialisations")]
    weighting = str(attributes.get("weighting", "none"))  # absent in older scores
    return best is not None and found == ["test", best.name, count] and weighting.startswith("none")


def is_done(trial: Trial) -> bool:
    """Return true if the trial is trained and scored."""
    return is_trained(trial) and is_scored(trial)


def scored_days(config: RunConfig, store: Store) -> int:
    """Return the number of days with scored initial times."""
    return np.unique(sample_table(config, store.times, "test").times.astype("datetime64[D]")).size


def unfinished(ablation: Ablation) -> list[int]:
    """Return the numbers of unfinished trainings, ascending."""
    return sorted(trial.number for trial in ablation.trials if not is_trained(trial))


def format_tasks(numbers: Iterable[int]) -> str:
    """Format ascending numbers for `sbatch --array`: `0-3,7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


class Scorer:
    """Scorer of an ablation's trials: scores one at a time, all with the same climatology."""

    def __init__(self) -> None:
        self._scoring_lock = threading.Lock()
        self._climatology: Climatology | None = None

    def score(self, trial: Trial) -> None:
        """Score the best tag on the test years; write the files of `aqtopo evaluate`.

        Raises:
            ValueError: the training has no tag, or the directory is not writable.
            FloatingPointError: the model returns non-finite values.
        """
        with self._scoring_lock:
            run = load_run(trial.run_dir)
            if self._climatology is None:
                data = run.config.data
                self._climatology = fit_climatology(run.store, data.targets, data.train_years)
            write_results(evaluate(run, climatology=self._climatology), trial.run_dir)


class _Children:
    """Running trainings."""

    def __init__(self) -> None:
        self.stopped = False
        self._lock = threading.RLock()  # a signal handler may run while it is held
        self._running: set[ForkServerProcess] = set()

    def run(self, config: RunConfig, log: Path) -> list[int | None]:
        """Train to the end; return the exit codes of all ranks."""
        with self._lock:
            if self.stopped:
                return [-signal.SIGTERM]
            ranks = fork_ranks(config, config.world_size, None, log)
            self._running.update(ranks)
        try:
            while alive := [rank.sentinel for rank in ranks if rank.is_alive()]:
                connection.wait(alive)
                if any(rank.exitcode for rank in ranks):  # the others would wait forever
                    for rank in ranks:
                        rank.kill()
            return [rank.exitcode for rank in ranks]
        finally:
            with self._lock:
                self._running.difference_update(ranks)

    def stop(self) -> None:
        """Terminate all trainings, which save first, and start no more."""
        with self._lock:
            self.stopped = True
            for rank in self._running:
                rank.terminate()


@contextmanager
def _children() -> Iterator[_Children]:
    """Stop all trainings at the end, and on SIGTERM or SIGINT, so that they save before this process ends."""
    children = _Children()

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        children.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield children
    finally:
        children.stop()
        for number, handler in before.items():
            signal.signal(number, handler)


def run_trials(ablation: Ablation, jobs: int, log: Log) -> None:
    """Train and score every unfinished trial, `jobs` at a time; a partial training resumes.

    Raises:
        ValueError: the run needs several nodes.
        RefusedError: a training failed; the others save and stop.
    """
    if ablation.base.training.nodes > 1:
        raise ValueError(
            f"{ablation.base.name} needs {ablation.base.training.nodes} nodes. Train with --slurm, then "
            "repeat the command without it."
        )
    todo = [trial for trial in ablation.trials if not is_done(trial)]
    log(f"{len(ablation.trials)} trainings, {len(ablation.trials) - len(todo)} done")
    (ablation.out / LOGS).mkdir(exist_ok=True)
    with _children() as children, ThreadPoolExecutor(jobs) as pool:
        scorer = Scorer()
        futures = [pool.submit(_finish, trial, ablation, children, scorer, log) for trial in todo]
        finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
        failures = [failure for future in finished if (failure := future.exception())]
        if children.stopped:
            raise SystemExit("stopped by a signal; repeat the command to resume")
        if failures:
            children.stop()
            pool.shutdown(wait=True, cancel_futures=True)
            raise failures[0]


def _finish(trial: Trial, ablation: Ablation, children: _Children, scorer: Scorer, log: Log) -> None:
    """Train and score one trial, unless the children were stopped."""
    if children.stopped:
        return
    position = f"{ablation.trials.index(trial) + 1}/{len(ablation.trials)}"
    if not is_trained(trial):
        resumes = " resumes" if (trial.run_dir / METRICS_FILE).is_file() else ""
        log(f"{position} {trial}{resumes}")
        _train(trial, ablation, children)
    scorer.score(trial)
    log(f"{position} {trial}: val_loss {read_run_state(trial.run_dir).best_val_loss:.4f}")


def _train(trial: Trial, ablation: Ablation, children: _Children) -> None:
    """Train one trial in child processes; raise RefusedError if it fails or stops before its end."""
    log_file = ablation.out / LOGS / f"{trial.variant.slug}-seed{trial.seed}.log"
    codes = children.run(trial.config, log_file)
    if any(codes) or not is_trained(trial):
        lines = log_file.read_text(errors="replace").splitlines() if log_file.is_file() else []
        tail = "\n".join(lines[-LOG_LINES:])
        raise RefusedError(
            f"The training of {trial} ended early with exit codes {codes} ({log_file}):\n{tail}"
        )
