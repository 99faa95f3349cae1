"""Scoring a trained run over one split of its data, beside persistence and climatology."""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

import numpy as np
import torch
import xarray as xr

from aqtopo.checkpoint.ranks import ALONE, Ranks
from aqtopo.config import RunConfig
from aqtopo.data.batch import Batch
from aqtopo.data.loader import EvaluationLoader
from aqtopo.data.samples import evaluation_share, sample_table
from aqtopo.data.schema import Hours
from aqtopo.data.walk import Report, in_silence
from aqtopo.evaluation.against import OtherForecasts
from aqtopo.evaluation.baselines import Climatology, climatology_of, persistence
from aqtopo.evaluation.exceedances import Exceedances, exceedance_scores
from aqtopo.evaluation.points import (
    CLIMATOLOGY,
    FORECASTS,
    MODEL,
    PERSISTENCE,
    Areas,
    Cases,
    Region,
    areas_of,
    make_cases,
)
from aqtopo.evaluation.scores import Axes, ErrorSums, overall, scores_of, stratified
from aqtopo.evaluation.spectra import Spectra, spectral_scores
from aqtopo.evaluation.stations import Stations, StationSums, check_observed
from aqtopo.inference.load import LoadedRun, predict
from aqtopo.variables import VARIABLES

TOKENS_AT_ONCE = 2**13
"""Tokens of one forward pass: one map of the reference grid, sixteen of 32 x 64 cells."""

EvaluatedSplit = Literal["validation", "test"]
"""The splits that are scored: training samples would flatter the model."""

_VERSIONED = ("aqtopo", "torch", "numpy", "xarray", "zarr")


class Tally(Protocol):
    """What is kept of all cases: sums, so that parts of the data add up to the whole."""

    def add(self, cases: Cases) -> None:
        """Add a batch."""

    def add_up(self, ranks: Ranks) -> None:
        """Add the other processes' sums to these."""

    def tables(self) -> Mapping[str, xr.Dataset]:
        """The sums, labelled."""


@dataclass(frozen=True)
class Extras:
    """What may be asked of an evaluation beyond the usual.

    Attributes:
        regions: boxes to score apart; None for `aqtopo.evaluation.points.REGIONS`.
        stations: observations to score forecasts against, beside the gridded truth.
        against: another model, scored on the initial times and cells that both have.
        every_hours: initial times so far apart, in place of the configuration's stride for the split.
    """

    regions: Sequence[Region] | None = None
    stations: Stations | None = None
    against: OtherForecasts | None = None
    every_hours: int | None = None


NOTHING_MORE = Extras()


@dataclass(frozen=True)
class Evaluation:
    """What became of a run's forecasts.

    Attributes:
        scores: what `overall` gives, in physical units, with `units` along `pollutant` and attributes that
            say what was scored.
        strata: scores by season, hour and area, see `stratified`; by station where stations were given.
        exceedances: days above the limits, see `exceedance_scores`.
        spectra: power by wavelength, see `spectral_scores`.
        tables: the sums that all scores come from, by the name of the table.
    """

    scores: xr.Dataset
    strata: dict[str, xr.Dataset]
    exceedances: xr.Dataset
    spectra: xr.Dataset
    tables: dict[str, xr.Dataset]


def evaluate(
    run: LoadedRun,
    split: EvaluatedSplit = "test",
    report: Report = in_silence,
    ranks: Ranks = ALONE,
    extras: Extras = NOTHING_MORE,
    climatology: Climatology | None = None,
) -> Evaluation:
    """Score the model, persistence and climatology over all initial times of a split.

    All are scored at the same points: inside the store's mask, where the truth is finite and all references
    have a value. Cells count equally. Climatology comes from the training years.

    Args:
        run: from `aqtopo.checkpoint.load_run`; its model moves to the GPU if there is one.
        split: `validation` or `test`.
        report: told how far this process is.
        ranks: the processes that share the initial times; all get the same scores.
        extras: regions, stations, another model.
        climatology: of the training years, where it is known from another run on the same data.

    Raises:
        ValueError: the split or the training years have no data, stations or the other model have none for
            the split, or the store is damaged.
        FloatingPointError: the model gives values that are not finite.
    """
    data, against = run.config.data, extras.against
    config = _with_stride(run.config, split, extras.every_hours)
    init_times = _init_times(run, config, split, against)
    if extras.stations is not None:
        check_observed(extras.stations, _valid_times(init_times, data.horizons))
    areas = areas_of(run.store, extras.regions)
    if climatology is None:
        climatology = climatology_of(run.store, data.targets, data.train_years, report, ranks)
    tallies = _tallies(run, init_times, areas, extras, ranks)
    batches = EvaluationLoader(run.store, config, split, ranks.rank, ranks.size, _batch_size(run), init_times)
    filled, done, due = 0, 0, evaluation_share(init_times.size, ranks.rank, ranks.size).size
    report("forecasts", done, due)
    for batch in batches:
        cases = _cases(run, batch, climatology, against)
        for tally in tallies:
            tally.add(cases)
        done, filled = done + len(batch.times), filled + batch.filled
        report("forecasts", done, due)
    for tally in tallies:
        tally.add_up(ranks)
    filled = int(ranks.add_up(torch.tensor(filled)))
    head = _provenance(run, split, init_times, climatology, areas) | {"inputs_filled": filled}
    return _evaluation({name: table for tally in tallies for name, table in tally.tables().items()}, head)


def _with_stride(config: RunConfig, split: EvaluatedSplit, every_hours: int | None) -> RunConfig:
    """The configuration with another distance between initial times."""
    if every_hours is None:
        return config
    data = config.data.model_copy(update={f"{split}_stride_hours": every_hours})
    return config.model_copy(update={"data": data})


def _init_times(
    run: LoadedRun, config: RunConfig, split: EvaluatedSplit, against: OtherForecasts | None
) -> Hours:
    """The split's initial times, those only that the other model has too.

    Raises:
        ValueError: there is none.
    """
    times = sample_table(config, run.store.times, split).times
    if against is None:
        return times
    common: Hours = times[np.isin(times, against.init_times)]
    if not common.size:
        raise ValueError(
            f"the forecasts {against.name} start at none of the {times.size} initial times of the {split} "
            f"split ({times[0]} to {times[-1]}, UTC), but from {against.init_times.min()} to "
            f"{against.init_times.max()}. Make forecasts for those times, or choose others with "
            "--every: 1 takes every hour."
        )
    return common


def _tallies(run: LoadedRun, init_times: Hours, areas: Areas, extras: Extras, ranks: Ranks) -> list[Tally]:
    data = run.config.data
    forecasts = FORECASTS if extras.against is None else (*FORECASTS, extras.against.name)
    axes = Axes(forecasts, data.targets, data.horizons, np.unique(init_times.astype("datetime64[D]")), areas)
    tallies: list[Tally] = [
        ErrorSums(axes),
        Exceedances(axes, init_times, ranks.size),
        Spectra(axes, run.store, init_times),
    ]
    if extras.stations is not None:
        tallies.append(StationSums(extras.stations, run.store, forecasts, data.horizons))
    return tallies


def _batch_size(run: LoadedRun) -> int:
    return max(1, TOKENS_AT_ONCE // run.config.tokens)


def _valid_times(init_times: Hours, horizons_h: Sequence[int]) -> Hours:
    """(B, K) the times that are forecast."""
    valid_times: Hours = init_times[:, None] + np.array(horizons_h, dtype="timedelta64[h]")
    return valid_times


def _cases(run: LoadedRun, batch: Batch, climatology: Climatology, against: OtherForecasts | None) -> Cases:
    data = run.config.data
    valid_times = _valid_times(batch.times, data.horizons)
    forecasts = {
        MODEL: predict(run, batch),
        PERSISTENCE: persistence(run.store, data.targets, batch.times, len(data.horizons)),
        CLIMATOLOGY: climatology.at(valid_times),
    }
    if against is not None:
        forecasts[against.name] = against.at(batch.times)
    truth = run.normalization.denormalize(batch.targets.numpy(), data.targets)
    return make_cases(batch.times, data.horizons, data.targets, forecasts, truth, batch.valid.numpy())


def _evaluation(tables: dict[str, xr.Dataset], head: dict[str, Any]) -> Evaluation:
    def labelled(dataset: xr.Dataset) -> xr.Dataset:
        units = [VARIABLES[str(name)].units for name in dataset["pollutant"].values]
        return dataset.assign_coords(units=("pollutant", units)).assign_attrs(head)

    strata = stratified(tables["by_day"], tables["by_hour"])
    if "stations" in tables:
        strata["station"] = scores_of(tables["stations"])
    return Evaluation(
        scores=labelled(overall(tables["by_day"])),
        strata={name: labelled(scores) for name, scores in strata.items()},
        exceedances=labelled(exceedance_scores(tables["exceedances"])),
        spectra=labelled(spectral_scores(tables["spectra"])),
        tables={name: labelled(table) for name, table in tables.items()},
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
