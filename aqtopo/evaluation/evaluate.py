"""Scores of a trained run and of the baselines over one split of its data."""

import importlib.metadata
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

import numpy as np
import torch
import xarray as xr

from aqtopo.config import RunConfig
from aqtopo.data.forecasts import OtherForecasts
from aqtopo.data.loader import EvaluationLoader
from aqtopo.data.samples import evaluation_share, sample_table
from aqtopo.data.schema import Hours
from aqtopo.data.store import Report, no_progress
from aqtopo.distributed.process_group import SINGLE_RANK, RankGroup, refusals_on_all_ranks
from aqtopo.evaluation.baselines import Climatology, Fits, baseline_forecasts, fit_baselines
from aqtopo.evaluation.exceedances import Exceedances, exceedance_scores
from aqtopo.evaluation.points import (
    FORECASTS,
    MODEL,
    WEIGHTINGS,
    Areas,
    FloatArray,
    Region,
    ScoredBatch,
    areas_of,
    make_scored_batch,
    valid_times,
)
from aqtopo.evaluation.scores import ErrorSums, ScoreAxes, overall, scores_from_sums, stratified_scores
from aqtopo.evaluation.spectra import Spectra, spectral_scores
from aqtopo.evaluation.stations import Stations, StationSums, check_observed
from aqtopo.inference.load import LoadedRun, check_hours, predict
from aqtopo.inference.weather import (
    PERFECT,
    WeatherForecast,
    check_weather,
    reading_config,
    weather_label,
    with_weather,
)
from aqtopo.variables import variables_as_json, variables_from_json

TOKENS_PER_BATCH = 2**13
"""Tokens of one forward pass: one map of the reference grid, sixteen of 32 x 64 cells."""

EvaluatedSplit = Literal["validation", "test"]
"""Splits that are scored. The model has seen the training samples, so they are excluded."""

_VERSIONED = ("aqtopo", "torch", "numpy", "xarray", "zarr")


class Accumulator(Protocol):
    """Streaming sums over batches; the sums of two parts of the data add up to those of the whole."""

    def add(self, batch: ScoredBatch) -> None:
        """Add a batch."""

    def all_reduce(self, ranks: RankGroup) -> None:
        """Sum over all processes."""

    def tables(self) -> Mapping[str, xr.Dataset]:
        """Return the labelled sums by the name of their table."""


@dataclass(frozen=True)
class EvalOptions:
    """Optional parts of an evaluation.

    Attributes:
        regions: boxes to score separately; None for `aqtopo.evaluation.points.REGIONS`.
        stations: observations to score forecasts against, in addition to the gridded truth.
        against: another model, scored on the initial times and cells that both have.
        weighting: of the cells, for RMSE, MAE, bias, ACC and skill; see `WEIGHTINGS`.
        weather: the weather to come, for a run that reads it; None for perfect weather.
        every_hours: stride of the initial times, in place of the configuration's for the split.
    """

    regions: Sequence[Region] | None = None
    stations: Stations | None = None
    against: OtherForecasts | None = None
    weather: WeatherForecast | None = None
    every_hours: int | None = None
    weighting: Literal["none", "area"] = "none"


@dataclass(frozen=True)
class Evaluation:
    """Scores of a run, in physical units, with the units along `pollutant` and the provenance as attributes.

    Attributes:
        scores: from `overall`.
        strata: from `stratified_scores`; also by station where stations were given.
        exceedances: from `exceedance_scores`.
        spectra: from `spectral_scores`.
        tables: the sums that all scores are computed from, by the name of the table.
    """

    scores: xr.Dataset
    strata: dict[str, xr.Dataset]
    exceedances: xr.Dataset
    spectra: xr.Dataset
    tables: dict[str, xr.Dataset]


def evaluate(
    run: LoadedRun,
    split: EvaluatedSplit = "test",
    report: Report = no_progress,
    ranks: RankGroup = SINGLE_RANK,
    options: EvalOptions | None = None,
    climatology: Climatology | None = None,
) -> Evaluation:
    """Score the model and the baselines over all initial times of a split.

    All are scored at the same points: inside the store's mask, where the truth and all baselines are finite.
    Every cell has the same weight. Climatology and regressions are fitted to the training years.

    Args:
        run: from `aqtopo.inference.load.load_run`; its model moves to the GPU if there is one.
        split: `validation` or `test`.
        report: receives the progress of this process.
        ranks: processes that share the initial times; all return the same scores.
        options: regions, stations, another model.
        climatology: of the training years, if another run on the same data has fitted it.

    Raises:
        ValueError: the split or the training years have no data, the stations or the other model have none
            for the split, or the store is damaged.
        FloatingPointError: the model returns values that are not finite.
    """
    check_hours(run)
    options = options or EvalOptions()
    data, against = run.config.data, options.against
    stride = {} if options.every_hours is None else {f"{split}_stride_hours": options.every_hours}
    config = run.config.model_copy(update={"data": data.model_copy(update=stride)})
    init_times = _init_times(run, config, split, against)
    weather = options.weather
    if weather is not None:
        check_weather(run.config, weather)
        weather.check(init_times)
    if options.stations is not None:
        check_observed(options.stations, valid_times(init_times, data.horizons))
    areas = areas_of(run.store, options.regions, options.weighting)
    batch_size = max(1, TOKENS_PER_BATCH // run.config.tokens)
    own = init_times[evaluation_share(init_times.size, ranks.rank, ranks.size)]
    _check_values(options, own, batch_size, report, ranks)
    fits = fit_baselines(run.store, data, run.run_dir, report, ranks, climatology)
    accumulators = _accumulators(run, init_times, areas, options, ranks)
    others = dict(baseline_forecasts(run.store, data, fits, None if weather is None else weather.at))
    if against is not None:
        others[against.name] = against.at
    reading = reading_config(config, weather)
    batches = EvaluationLoader(run.store, reading, split, ranks.rank, ranks.size, batch_size, init_times)
    kept = _KeptValues(options)
    filled, done, due = 0, 0, own.size
    report("forecasts", done, due)
    for batch in batches:
        forecasts = {MODEL: predict(run, with_weather(batch, weather, run.normalization))}
        forecasts |= {name: forecast(batch.times) for name, forecast in others.items()}
        kept.add(batch.times, forecasts)
        truth = run.normalization.denormalize(batch.targets.numpy(), data.targets)
        valid = batch.valid.numpy()
        scored = make_scored_batch(batch.times, data.horizons, data.targets, forecasts, truth, valid)
        for accumulator in accumulators:
            accumulator.add(scored)
        done, filled = done + len(batch.times), filled + batch.filled
        report("forecasts", done, due)
    for accumulator in accumulators:
        accumulator.all_reduce(ranks)
    filled = int(ranks.all_reduce_sum(torch.tensor(filled)))
    tables = {name: table for accumulator in accumulators for name, table in accumulator.tables().items()}
    provenance = _provenance(run, split, init_times, fits, areas) | {
        "weighting": WEIGHTINGS[options.weighting]
    }
    if data.weather_at_horizons:
        provenance |= {"weather": weather_label(weather or PERFECT)}
        provenance |= {} if weather is None else {"weather_forecast": weather.name}
    return _evaluation(tables, provenance | {"inputs_filled": filled, "kept_values": kept.counts(ranks)})


class _KeptValues:
    """Number of values outside the valid range, such as small negative ones, in what comes from outside."""

    def __init__(self, options: EvalOptions) -> None:
        self._against, self._weather, self._stations = options.against, options.weather, options.stations
        given = [self._against, None if self._weather is None else self._weather.forecasts]
        self._sources = {
            each.name: Counter({channel.variable.name: 0 for channel in each.channels})  # equal on all ranks
            for each in given
            if each is not None
        }

    def add(self, times: Hours, forecasts: Mapping[str, FloatArray]) -> None:
        """Count the other model's forecasts and the weather from initial times."""
        if self._against is not None:
            name = self._against.name
            self._sources[name].update(self._against.outside(forecasts[name]))
        if self._weather is not None:
            self._sources[self._weather.name].update(self._weather.forecasts.outside(self._weather.at(times)))

    def counts(self, ranks: RankGroup) -> dict[str, dict[str, int]]:
        """Return the sums over all processes by source and variable, without zeros."""
        found: dict[str, Mapping[str, int]] = dict(self._sources)
        for source, own in found.items():
            names = sorted(own)
            total = ranks.all_reduce_sum(torch.tensor([own[name] for name in names], dtype=torch.int64))
            found[source] = dict(zip(names, total.tolist(), strict=True))
        if self._stations is not None:
            found["stations"] = self._stations.kept
        return {source: {name: n for name, n in counts.items() if n} for source, counts in found.items()}


def _init_times(
    run: LoadedRun, config: RunConfig, split: EvaluatedSplit, against: OtherForecasts | None
) -> Hours:
    """Return the split's initial times, restricted to those of the other model.

    Raises:
        ValueError: there is none.
    """
    times = sample_table(config, run.store.times, split).times
    if against is None:
        return times
    common: Hours = times[np.isin(times, against.init_times)]
    if not common.size:
        raise ValueError(
            f"the forecasts {against.name} have none of the {times.size} initial times of the {split} "
            f"split ({times[0]} to {times[-1]}, UTC); they have {against.init_times.min()} to "
            f"{against.init_times.max()}. Make forecasts for those times, or choose other times with "
            "--every (1 takes every hour)."
        )
    return common


def _check_values(
    options: EvalOptions, times: Hours, batch_size: int, report: Report, ranks: RankGroup
) -> None:
    """Read the weather and the other model's forecasts for these initial times once, before the fits.

    Raises:
        ValueError: the weather has a gap, or a value is impossible or cannot be read; on every rank.
    """
    given = [each for each in (options.weather, options.against) if each is not None]
    with refusals_on_all_ranks(ranks, "the forecasts cannot be scored", (ValueError,), ValueError):
        for first in range(0, times.size if given else 0, batch_size):
            for forecasts in given:
                forecasts.at(times[first : first + batch_size])
            report("forecasts checked", min(first + batch_size, times.size), times.size)


def _accumulators(
    run: LoadedRun, init_times: Hours, areas: Areas, options: EvalOptions, ranks: RankGroup
) -> list[Accumulator]:
    data = run.config.data
    forecasts = FORECASTS if options.against is None else (*FORECASTS, options.against.name)
    axes = ScoreAxes(
        forecasts, data.targets, data.horizons, np.unique(init_times.astype("datetime64[D]")), areas
    )
    accumulators: list[Accumulator] = [
        ErrorSums(axes),
        Exceedances(axes, init_times, ranks.size),
        Spectra(axes, run.store, init_times),
    ]
    if options.stations is not None:
        accumulators.append(StationSums(options.stations, run.store, forecasts, data.horizons))
    return accumulators


def _evaluation(tables: dict[str, xr.Dataset], attrs: dict[str, Any]) -> Evaluation:
    variables = variables_from_json(attrs["variables"])

    def with_units(dataset: xr.Dataset) -> xr.Dataset:
        units = [variables[str(name)].units for name in dataset["pollutant"].values]
        return dataset.assign_coords(units=("pollutant", units)).assign_attrs(attrs)

    strata = stratified_scores(tables["by_day"], tables["by_hour"])
    if "stations" in tables:
        strata["station"] = scores_from_sums(tables["stations"])
    return Evaluation(
        scores=with_units(overall(tables["by_day"])),
        strata={name: with_units(scores) for name, scores in strata.items()},
        exceedances=with_units(exceedance_scores(tables["exceedances"])),
        spectra=with_units(spectral_scores(tables["spectra"])),
        tables={name: with_units(table) for name, table in tables.items()},
    )


def _provenance(
    run: LoadedRun, split: EvaluatedSplit, init_times: Hours, fits: Fits, areas: Areas
) -> dict[str, Any]:
    """Return the attributes that identify run, state, data and versions."""
    data = run.config.data
    return {
        "run": run.config.name,
        "tag": run.tag_name,
        "config_digest": run.config.digest,
        "split": split,
        "years": list(data.test_years if split == "test" else data.validation_years),
        "variables": variables_as_json(run.store.variables[name] for name in data.targets),
        "climatology": fits.climatology.described,
        "climatology_years": list(fits.climatology.years),
        "linear": fits.linear.described,
        "linear_same": fits.linear_same.described,
        "standard_deviations": {name: run.store.std[name] for name in data.targets},
        "areas_without_cells": list(areas.empty),
        "data_source": run.store.source,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: importlib.metadata.version(name) for name in _VERSIONED}
        | {"python": platform.python_version()},
        "initialisations": init_times.size,
        "first_init": str(init_times[0]),
        "last_init": str(init_times[-1]),
    }
