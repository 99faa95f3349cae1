"""The result of an ablation for people: rich tables for the terminal, markdown for the docs, one wording."""

from dataclasses import dataclass

import numpy as np
import rich.box
import xarray as xr
from numpy.typing import NDArray
from rich.table import Table

from aqtopo.evaluation.ablation_file import sums_up, verdict


@dataclass(frozen=True)
class Sheet:
    """A table before it is drawn.

    Attributes:
        title: what it shows.
        head: names of the columns.
        rows: a text for every column.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def as_rich(self) -> Table:
        """For the terminal."""
        table = Table(title=self.title, box=rich.box.SIMPLE_HEAD)
        for name in self.head:
            table.add_column(name)
        for row in self.rows:
            table.add_row(*row)
        return table

    def as_markdown(self) -> str:
        """For a page."""
        lines = [self.head, ("---",) * len(self.head), *self.rows]
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        return f"{self.title}\n\n{table}\n"


def sheets(result: xr.Dataset) -> list[Sheet]:
    """Variants; what changes overall; what changes in each pollutant and horizon, a sheet a contrast."""
    return [_variants(result), _overall(result), *(_pairs(result, label) for label in _contrasts(result))]


def _contrasts(result: xr.Dataset) -> list[str]:
    return [str(label) for label in result["contrast"].values]


def _scores(result: xr.Dataset, *, summary: bool) -> list[str]:
    """Names of the scores that sum up, or of those of one pollutant and horizon."""
    names = [str(name) for name in result["score"].values]
    return [name for name in names if sums_up(name) == summary]


def _variants(result: xr.Dataset) -> Sheet:
    """Every variant: mean over seeds and the lowest and highest of them."""
    rows = []
    for variant in result["variant"].values:
        one = result[["val_loss", "overall", "alpha"]].sel(variant=variant)
        alphas = one["alpha"].values[np.isfinite(one["alpha"].values)]
        alpha = ", ".join(f"{value:.2f}" for value in alphas) if alphas.size else "-"
        rows.append((str(variant), _spread(one["val_loss"].values), _spread(one["overall"].values), alpha))
    seeds = result.sizes["seed"]
    head = ("variant", "val_loss", "test RMSE, all [deviations]", "alpha learnt [km-1]")
    return Sheet(f"Variants: mean of {seeds} seed(s), lowest and highest", head, tuple(rows))


def _spread(values: NDArray[np.floating]) -> str:
    return f"{np.mean(values):.4f} ({np.min(values):.4f} - {np.max(values):.4f})"


def _overall(result: xr.Dataset) -> Sheet:
    """Every contrast's change of all scores together and of the validation loss."""
    rows = []
    for label in _contrasts(result):
        one = result.sel(contrast=label)
        rows += [(label, score, *_cells(one.sel(score=score))) for score in _scores(result, summary=True)]
    head = ("what", "score", "change", "95% over days", "95% over seeds", "verdict")
    return Sheet("What changes, in per cent of the baseline; negative is better", head, tuple(rows))


def _pairs(result: xr.Dataset, label: str) -> Sheet:
    """One contrast's change in every pollutant and horizon."""
    one = result.sel(contrast=label)
    scores = _scores(result, summary=False)
    rows = tuple((name, *_cells(one.sel(score=name))) for name in scores)
    shown = int(one["shown"].sel(score=scores).sum())
    title = f"{label}: RMSE of each pollutant and horizon, {shown} of {len(scores)} shown"
    return Sheet(title, ("score", "change", "95% over days", "95% over seeds", "verdict"), rows)


def _cells(one: xr.Dataset) -> tuple[str, str, str, str]:
    """Change, intervals and verdict of one score."""
    change = float(one["change"])
    days, seeds = (_interval(float(one[f"{n}_low"]), float(one[f"{n}_high"])) for n in ("days", "seeds"))
    return f"{change:+.2f}%", days, seeds, verdict(change, bool(one["shown"]))


def _interval(low: float, high: float) -> str:
    return "-" if np.isnan(low) else f"{low:+.2f} to {high:+.2f}"
