"""Results of an ablation as tables and files.

Rich tables for the terminal; results.json and results.nc for programs, results.md with all tables.
"""

import math
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import rich.box
import xarray as xr
from numpy.typing import NDArray
from rich.table import Table

from aqtopo.ablation.factors import Variant
from aqtopo.ablation.plan import Ablation
from aqtopo.ablation.results_file import (
    RESULTS_FILE,
    Machine,
    Results,
    ScoreChange,
    SeedValues,
    VariantResult,
    is_summary,
    verdict,
)
from aqtopo.checkpoint.files import write_durably
from aqtopo.checkpoint.manifest import package_versions, source_commit
from aqtopo.data import open_store
from aqtopo.inference.forecast_file import write_forecast


@dataclass(frozen=True)
class ResultTable:
    """Table independent of its output format: names of the columns, and rows with a text per column."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def as_rich(self) -> Table:
        """Return a rich table."""
        table = Table(title=self.title, box=rich.box.SIMPLE_HEAD)
        for name in self.head:
            table.add_column(name)
        for row in self.rows:
            table.add_row(*row)
        return table

    def as_markdown(self) -> str:
        """Return a markdown table with its title."""
        lines = [self.head, ("---",) * len(self.head), *self.rows]
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        return f"{self.title}\n\n{table}\n"


_CHANGE_COLUMNS = ("score", "change", "95% over days", "95% over seeds", "verdict")
"""Columns of a table of changes."""


def result_tables(result: xr.Dataset) -> list[ResultTable]:
    """Return the tables of variants, of overall changes, and of all pairs of each contrast."""
    labels, scores = (result[name].values.tolist() for name in ("contrast", "score"))
    by_label = {label: result.sel(contrast=label) for label in labels}
    summaries = [name for name in scores if is_summary(name)]
    pairs = [name for name in scores if not is_summary(name)]
    overall = tuple((label, *row) for label, one in by_label.items() for row in _changes(one, summaries))
    tables = [
        _variants(result),
        ResultTable(
            "Change relative to the baseline; negative is better", ("contrast", *_CHANGE_COLUMNS), overall
        ),
    ]
    for label, one in by_label.items():
        shown = int(one["shown"].sel(score=pairs).sum())
        title = f"{label}: RMSE of each pollutant and horizon, {shown} of {len(pairs)} shown"
        tables.append(ResultTable(title, _CHANGE_COLUMNS, tuple(_changes(one, pairs))))
    return tables


def _variants(result: xr.Dataset) -> ResultTable:
    """Return the table of variants: mean over seeds, minimum and maximum."""
    rows = []
    for variant in result["variant"].values:
        one = result[["val_loss", "overall", "alpha"]].sel(variant=variant)
        alphas = one["alpha"].values[np.isfinite(one["alpha"].values)]
        alpha = ", ".join(f"{value:.2f}" for value in alphas) if alphas.size else "-"
        rows.append((str(variant), _spread(one["val_loss"].values), _spread(one["overall"].values), alpha))
    seeds = result.sizes["seed"]
    head = ("variant", "val_loss", "test RMSE, all [deviations]", "learned alpha [km-1]")
    return ResultTable(f"Variants: mean of {seeds} seed(s), minimum and maximum", head, tuple(rows))


def _spread(values: NDArray[np.floating]) -> str:
    return f"{np.mean(values):.4f} ({np.min(values):.4f} - {np.max(values):.4f})"


def _changes(contrast: xr.Dataset, scores: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield name, change, intervals and verdict of each score."""
    for name in scores:
        one = contrast.sel(score=name)
        change = float(one["change"])
        days, seeds = (_interval(float(one[f"{n}_low"]), float(one[f"{n}_high"])) for n in ("days", "seeds"))
        yield name, f"{change:+.2f}%", days, seeds, verdict(change, bool(one["shown"]))


def _interval(low: float, high: float) -> str:
    return "-" if np.isnan(low) else f"{low:+.2f} to {high:+.2f}"


def write_comparison(ablation: Ablation, result: xr.Dataset) -> Path:
    """Write results.md, results.nc and results.json; return the path of the last."""
    tables = [table.as_markdown() for table in result_tables(result)]
    write_durably(ablation.out / "results.md", "\n".join(tables))
    write_forecast(result, ablation.out / "results.nc", overwrite=True)
    path = ablation.out / RESULTS_FILE
    write_durably(path, _results(ablation, result).model_dump_json(indent=2) + "\n")
    return path


def _results(ablation: Ablation, result: xr.Dataset) -> Results:
    """Return the results with their provenance."""
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
        variables=tuple(store.variables[str(name)] for name in result["pollutant"].values),
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
    """Return values with None for NaN, which JSON lacks."""
    return tuple(value if math.isfinite(value) else None for value in values.values.ravel().tolist())
