"""Scoring a trained run over one split of its data, beside persistence and climatology."""

import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr

from aqtopo.checkpoint import LoadedRun
from aqtopo.checkpoint.ranks import ALONE, Ranks
from aqtopo.data.batch import Batch
from aqtopo.data.loader import evaluation_batches
from aqtopo.data.samples import sample_table
from aqtopo.data.schema import Hours
from aqtopo.data.walk import Report, in_silence
from aqtopo.evaluation.areas import Areas, Region, areas_of
from aqtopo.evaluation.baselines import persistence
from aqtopo.evaluation.cases import CLIMATOLOGY, FORECASTS, MODEL, PERSISTENCE, Cases, make_cases
from aqtopo.evaluation.climatology import Climatology, climatology_of
from aqtopo.evaluation.predict import predict
from aqtopo.evaluation.scores import overall, stratified
from aqtopo.evaluation.sums import Axes, ErrorSums
from aqtopo.variables import VARIABLES

TOKENS_AT_ONCE = 2**13
"""Tokens of one forward pass: one map of the reference grid, sixteen of 32 x 64 cells."""

EvaluatedSplit = Literal["validation", "test"]
"""The splits that are scored: training samples would flatter the model."""

_VERSIONED = ("aqtopo", "torch", "numpy", "xarray", "zarr")


@dataclass(frozen=True)
class Evaluation:
    """What became of a run's forecasts.

    Attributes:
        scores: what `overall` gives, in physical units, with `units` along `pollutant` and attributes that
            say what was scored.
        strata: scores by season, hour and area, see `stratified`.
        tables: the sums that all scores come from: `by_day` and `by_hour`, see `ErrorSums`.
    """

    scores: xr.Dataset
    strata: dict[str, xr.Dataset]
    tables: dict[str, xr.Dataset]


def evaluate(
    run: LoadedRun,
    split: EvaluatedSplit = "test",
    report: Report = in_silence,
    ranks: Ranks = ALONE,
    regions: Sequence[Region] | None = None,
) -> Evaluation:
    """Score the model, persistence and climatology over all initial times of a split.

    All three are scored at the same points: inside the store's mask, where the truth is finite and both
    references have a value. Cells count equally. Climatology comes from the training years.

    Args:
        run: from `aqtopo.checkpoint.load_run`; its model moves to the GPU if there is one.
        split: `validation` or `test`.
        report: told how far this process is.
        ranks: the processes that share the initial times; all get the same scores.
        regions: boxes to score apart; None for `aqtopo.evaluation.areas.REGIONS`.

    Raises:
        ValueError: the split or the training years have no data, or the store is damaged.
        FloatingPointError: the model gives values that are not finite.
    """
    data = run.config.data
    init_times = sample_table(run.config, run.store.times, split).times
    areas = areas_of(run.store, regions)
    climatology = climatology_of(run.store, data.targets, data.train_years, report, ranks)
    days = np.unique(init_times.astype("datetime64[D]"))
    sums = ErrorSums(Axes(FORECASTS, data.targets, data.horizons, days, areas))
    batches = evaluation_batches(run.store, run.config, split, ranks.rank, ranks.size, _batch_size(run))
    filled, done, due = 0, 0, -(-init_times.size // ranks.size)
    report("forecasts", done, due)
    for batch in batches:
        sums.add(_cases(run, batch, climatology))
        done, filled = done + len(batch.times), filled + batch.filled
        report("forecasts", done, due)
    for array in sums.arrays():
        array[...] = ranks.add_up(torch.from_numpy(array)).numpy()
    filled = int(ranks.add_up(torch.tensor(filled)))
    head = _provenance(run, split, init_times, climatology, areas) | {"inputs_filled": filled}
    return _evaluation(sums, head)


def _batch_size(run: LoadedRun) -> int:
    return max(1, TOKENS_AT_ONCE // run.config.tokens)


def _cases(run: LoadedRun, batch: Batch, climatology: Climatology) -> Cases:
    data = run.config.data
    valid_times = batch.times[:, None] + np.array(data.horizons, dtype="timedelta64[h]")
    forecasts = {
        MODEL: predict(run, batch),
        PERSISTENCE: persistence(run.store, data.targets, batch.times, len(data.horizons)),
        CLIMATOLOGY: climatology.at(valid_times),
    }
    truth = run.normalization.denormalize(batch.targets.numpy(), data.targets)
    return make_cases(batch.times, data.horizons, data.targets, forecasts, truth, batch.valid.numpy())


def _evaluation(sums: ErrorSums, head: dict[str, Any]) -> Evaluation:
    def labelled(dataset: xr.Dataset) -> xr.Dataset:
        units = [VARIABLES[str(name)].units for name in dataset["pollutant"].values]
        return dataset.assign_coords(units=("pollutant", units)).assign_attrs(head)

    by_day, by_hour = sums.by_day(), sums.by_hour()
    return Evaluation(
        scores=labelled(overall(by_day)),
        strata={name: labelled(scores) for name, scores in stratified(by_day, by_hour).items()},
        tables={"by_day": labelled(by_day), "by_hour": labelled(by_hour)},
    )


def _provenance(
    run: LoadedRun, split: EvaluatedSplit, init_times: Hours, climatology: Climatology, areas: Areas
) -> dict[str, Any]:
    """What the scores are scores of."""
    data = run.config.data
    return {
        "run": run.config.name,
        "tag": run.tag.name,
        "config_digest": run.config.digest,
        "split": split,
        "years": list(data.test_years if split == "test" else data.validation_years),
        "climatology": climatology.described,
        "climatology_years": list(climatology.years),
        "weighting": "none: every cell inside the mask counts the same",
        "areas_without_cells": list(areas.empty),
        "data_source": run.store.source,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: importlib.metadata.version(name) for name in _VERSIONED}
        | {"python": platform.python_version()},
        "initialisations": init_times.size,
        "first_init": str(init_times[0]),
        "last_init": str(init_times[-1]),
    }
