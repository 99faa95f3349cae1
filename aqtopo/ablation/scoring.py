"""Scores a training as `aqtopo evaluate` does; the climatology, which all share, is made once."""

import threading

import numpy as np

from aqtopo.ablation.plan import Trial
from aqtopo.checkpoint import best_tag
from aqtopo.config import RunConfig
from aqtopo.data import open_store
from aqtopo.data.samples import sample_table
from aqtopo.data.store import Store
from aqtopo.evaluation.baselines import Climatology, fit_climatology
from aqtopo.evaluation.evaluate import evaluate
from aqtopo.evaluation.results import SCORES, read_table, write_results
from aqtopo.inference.load import load_run


def scored_days(config: RunConfig, store: Store) -> int:
    """On how many days the forecasts start that are scored."""
    return np.unique(sample_table(config, store.times, "test").times.astype("datetime64[D]")).size


def is_scored(trial: Trial) -> bool:
    """Whether the sums that results come from are there, of the best state and the whole test split.

    `aqtopo evaluate` may have put those of another state, of validation or of fewer days in their place.

    Raises:
        ValueError: what is there cannot be read.
    """
    if not (trial.run_dir / f"{SCORES}.zarr").is_dir():
        return False
    of, best = read_table(trial.run_dir, "by_day").attrs, best_tag(trial.run_dir)
    due = sample_table(trial.config, open_store(trial.config.data.store).times, "test").times.size
    found = [of.get(key) for key in ("split", "tag", "initialisations")]
    return best is not None and found == ["test", best.name, due]


class Scorer:
    """Scores trials of one ablation, one at a time: they have the data and the training years in common."""

    def __init__(self) -> None:
        self._alone = threading.Lock()
        self._climatology: Climatology | None = None

    def score(self, trial: Trial) -> None:
        """Score the best state over the test years; write what `aqtopo evaluate` writes.

        Raises:
            ValueError: the training left no state, or the place cannot be written.
            FloatingPointError: the model gives values that are not finite.
        """
        with self._alone:
            run = load_run(trial.run_dir)
            if self._climatology is None:
                data = run.config.data
                self._climatology = fit_climatology(run.store, data.targets, data.train_years)
            write_results(evaluate(run, climatology=self._climatology), trial.run_dir)
