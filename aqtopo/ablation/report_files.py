"""The files that an ablation leaves: results.json and results.nc for programs, results.md for a page."""

import math
import os
import platform
from datetime import UTC, datetime
from pathlib import Path

import xarray as xr

from aqtopo.ablation.factors import Variant
from aqtopo.ablation.plan import Ablation
from aqtopo.ablation.results_file import (
    RESULTS_FILE,
    Machine,
    Results,
    ScoreChange,
    SeedValues,
    VariantResult,
)
from aqtopo.ablation.tables import sheets
from aqtopo.checkpoint.files import write_durably
from aqtopo.checkpoint.manifest import package_versions, source_commit
from aqtopo.data import open_store
from aqtopo.inference.forecast_file import write_forecast


def write_results(ablation: Ablation, result: xr.Dataset) -> Path:
    """Write all three; the path of the JSON file."""
    pages = [sheet.as_markdown() for sheet in sheets(result)]
    write_durably(ablation.out / "results.md", "\n".join(pages))
    write_forecast(result, ablation.out / "results.nc", overwrite=True)
    path = ablation.out / RESULTS_FILE
    write_durably(path, _results(ablation, result).model_dump_json(indent=2) + "\n")
    return path


def _results(ablation: Ablation, result: xr.Dataset) -> Results:
    """The result with all that is needed to know later what it is a result of."""
    store = open_store(ablation.base.data.store)
    return Results(
        run=ablation.base.name,
        config_digest=ablation.base.digest,
        store=ablation.base.data.store,
        source=store.source,
        simulated=store.simulated,
        commit=source_commit(),
        factors={factor.path: factor.levels for factor in ablation.factors},
        seeds=ablation.seeds,
        starts=result.attrs["alike"],
        variants=tuple(_compared(result, variant) for variant in ablation.variants),
        changes=tuple(
            _change(result.sel(contrast=contrast, score=score))
            for contrast in result["contrast"].values
            for score in result["score"].values
        ),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=Machine(platform=platform.platform(), cores=os.cpu_count()),
        versions=package_versions(),
    )


def _compared(result: xr.Dataset, variant: Variant) -> VariantResult:
    one = result.sel(variant=variant.label)
    return VariantResult(
        variant=variant.label,
        folder=variant.slug,
        val_loss=_numbers(one["val_loss"]),
        overall_rmse=_numbers(one["overall"]),
        alpha=_numbers(one["alpha"]),
        rmse={
            f"{pollutant} {horizon} h": _numbers(one["rmse"].sel(pollutant=pollutant, horizon=horizon))
            for pollutant in one["pollutant"].values
            for horizon in one["horizon"].values
        },
    )


def _change(one: xr.Dataset) -> ScoreChange:
    bounds = ("change", "days_low", "days_high", "seeds_low", "seeds_high")
    return ScoreChange(
        contrast=str(one["contrast"].values),
        score=str(one["score"].values),
        shown=bool(one["shown"]),
        **{name: _numbers(one[name])[0] for name in bounds},
    )


def _numbers(values: xr.DataArray) -> SeedValues:
    """JSON has no NaN: null."""
    return tuple(value if math.isfinite(value) else None for value in values.values.ravel().tolist())
