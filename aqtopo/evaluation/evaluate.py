"""Scoring a trained run over one split of its data, beside persistence and climatology."""

import importlib.metadata
import platform
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import xarray as xr

from aqtopo.checkpoint import LoadedRun
from aqtopo.data.loader import evaluation_batches
from aqtopo.data.samples import sample_table
from aqtopo.data.walk import Report, in_silence
from aqtopo.evaluation.baselines import Climatology, hourly_climatology, persistence
from aqtopo.evaluation.predict import predict
from aqtopo.evaluation.scores import MODEL, ErrorSums
from aqtopo.variables import VARIABLES

TOKENS_AT_ONCE = 2**13
"""Tokens of one forward pass: one map of the reference grid, sixteen of 32 x 64 cells."""

EvaluatedSplit = Literal["validation", "test"]
"""The splits that are scored: training samples would flatter the model."""

_VERSIONED = ("aqtopo", "torch", "numpy", "xarray", "zarr")


def evaluate(run: LoadedRun, split: EvaluatedSplit = "test", report: Report = in_silence) -> xr.Dataset:
    """Score the model, persistence and climatology over all initial times of a split.

    All three are scored at the same points: inside the store's mask, where the truth is finite and both
    references have a value. Cells count equally. Climatology comes from the training years.

    Args:
        run: from `aqtopo.checkpoint.load_run`; its model moves to the GPU if there is one.
        split: `validation` or `test`.
        report: told how far it is.

    Returns:
        What `ErrorSums.scores` gives, in physical units, with `units` along `pollutant` and attributes that
        say what was scored.

    Raises:
        ValueError: the split or the training years have no data, or the store is damaged.
        FloatingPointError: the model gives values that are not finite.
    """
    data = run.config.data
    init_times = sample_table(run.config, run.store.times, split).times
    climatology = hourly_climatology(run.store, data.targets, data.train_years, report)
    sums = ErrorSums.empty(data.targets, data.horizons)
    done = filled = 0
    size = max(1, TOKENS_AT_ONCE // run.config.tokens)
    report("forecasts", done, init_times.size)
    for batch in evaluation_batches(run.store, run.config, split, rank=0, world=1, batch=size):
        valid_times = batch.times[:, None] + np.array(data.horizons, dtype="timedelta64[h]")
        references = {
            "persistence": persistence(run.store, data.targets, batch.times, len(data.horizons)),
            "climatology": climatology.at(valid_times),
        }
        truth = run.normalization.denormalize(batch.targets.numpy(), data.targets)
        sums.add({MODEL: predict(run, batch), **references}, truth, batch.valid.numpy())
        done, filled = done + len(batch.times), filled + batch.filled
        report("forecasts", done, init_times.size)
    scores = sums.scores()
    units = [VARIABLES[name].units for name in data.targets]
    return scores.assign_coords(units=("pollutant", units)).assign_attrs(
        _provenance(run, split, climatology),
        initialisations=done,
        first_init=str(init_times[0]),
        last_init=str(init_times[-1]),
        inputs_filled=filled,
    )


def _provenance(run: LoadedRun, split: EvaluatedSplit, climatology: Climatology) -> dict[str, Any]:
    """What the scores are scores of."""
    data = run.config.data
    return {
        "run": run.config.name,
        "tag": run.tag.name,
        "config_digest": run.config.digest,
        "split": split,
        "years": list(data.test_years if split == "test" else data.validation_years),
        "climatology_years": list(climatology.years),
        "weighting": "none: every cell inside the mask counts the same",
        "data_source": run.store.source,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: importlib.metadata.version(name) for name in _VERSIONED}
        | {"python": platform.python_version()},
    }
