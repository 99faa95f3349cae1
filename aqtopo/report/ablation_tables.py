"""Tables and interval drawings of an ablation's page, from `results.json`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aqtopo.ablation import results_file
from aqtopo.ablation.results_file import OVERALL, VAL_LOSS, Results, SeedValues
from aqtopo.report.images import Scale
from aqtopo.report.text import capitalised, plus, rounded
from aqtopo.variables import Variables

_DASH = "\N{EN DASH}"


Ticks = tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class VariantRow:
    """A variant's values as text: mean over the seeds; with several seeds also minimum and maximum."""

    label: str
    val_loss: str
    rmse: str
    alpha: str


@dataclass(frozen=True)
class IntervalBar:
    """An interval: its text, and its ends on the drawing [percent from the left]."""

    text: str
    left: float
    right: float


@dataclass(frozen=True)
class ChangeRow:
    """Change of one score in percent of the baseline; negative is better.

    The position and the intervals are on the drawing [percent from the left, zero in the middle].
    """

    score: str
    percent: str
    position: float
    days: IntervalBar | None
    seeds: IntervalBar | None
    verdict: str


@dataclass(frozen=True)
class ContrastTable:
    """One comparison.

    `overall` has the changes over all pollutants and horizons, over areas, and of the validation loss.
    `pairs` has a row of changes by horizon for each pollutant. `shown` of the `total` pairs are significant.
    """

    label: str
    ticks: Ticks
    overall: tuple[ChangeRow, ...]
    horizons: tuple[str, ...]
    pairs: tuple[tuple[str, tuple[ChangeRow, ...]], ...]
    shown: int
    total: int


@dataclass(frozen=True)
class Overview:
    """Change of the test RMSE over all pollutants and horizons in every comparison, on one axis."""

    ticks: Ticks
    changes: tuple[tuple[str, ChangeRow], ...]


def variant_rows(content: Results) -> tuple[VariantRow, ...]:
    """Return the rows of the variants, the baseline last."""
    return tuple(
        VariantRow(one.variant, _spread(one.val_loss, 4), _spread(one.overall_rmse, 4), _spread(one.alpha, 3))
        for one in content.variants
    )


def contrast_tables(content: Results) -> tuple[ContrastTable, ...]:
    """Return the table of every contrast; the drawings of one share an axis."""
    by_label: dict[str, list[results_file.ScoreChange]] = {}
    for change in content.changes:
        by_label.setdefault(change.contrast, []).append(change)
    return tuple(_contrast(label, changes, content.described) for label, changes in by_label.items())


def overview(content: Results) -> Overview:
    """Return the overview of all comparisons."""
    changes = [change for change in content.changes if change.score == OVERALL]
    reach = _reach(changes)
    return Overview(_ticks(reach), tuple((change.contrast, _change_row(change, reach)) for change in changes))


def _contrast(label: str, changes: Sequence[results_file.ScoreChange], variables: Variables) -> ContrastTable:
    sums = [change for change in changes if change.is_summary]
    pairs = [change for change in changes if not change.is_summary]
    reach = _reach(sums)
    horizons = tuple(dict.fromkeys(change.pair[1] for change in pairs))
    by_pollutant: dict[str, list[ChangeRow]] = {}
    for change in pairs:
        by_pollutant.setdefault(change.pair[0], []).append(_change_row(change, reach))
    rows = tuple(
        (capitalised(variables[name].long_name), tuple(cells)) for name, cells in by_pollutant.items()
    )
    shown = sum(change.shown for change in pairs)
    overall = tuple(_change_row(change, reach) for change in sums)
    return ContrastTable(label, _ticks(reach), overall, horizons, rows, shown, len(pairs))


def _change_row(change: results_file.ScoreChange, reach: float) -> ChangeRow:
    value = change.change
    return ChangeRow(
        _named(change),
        "n/a" if value is None else f"{_signed(value)} %",
        _position(value or 0.0, reach),
        _bar(change.days_low, change.days_high, reach),
        _bar(change.seeds_low, change.seeds_high, reach),
        change.verdict,
    )


def _named(change: results_file.ScoreChange) -> str:
    if change.score == VAL_LOSS:
        return "validation loss"
    if change.is_summary:
        return "test RMSE" + change.score.removeprefix(OVERALL).replace(" ", ", ", 1)
    return change.score


def _bar(low: float | None, high: float | None, reach: float) -> IntervalBar | None:
    if low is None or high is None:
        return None
    return IntervalBar(f"{_signed(low)} to {_signed(high)}", _position(low, reach), _position(high, reach))


def _reach(changes: Sequence[results_file.ScoreChange]) -> float:
    """Return the largest change or bound [percent] with a margin, as the limit of the axis."""
    ends = [(one.change, one.days_low, one.days_high, one.seeds_low, one.seeds_high) for one in changes]
    sizes = [abs(end) for one in ends for end in one if end is not None]
    return 1.05 * max(sizes, default=1.0) or 1.0


def _ticks(reach: float) -> Ticks:
    return Scale(-reach, reach, "difference").ticks


def _position(value: float, reach: float) -> float:
    return float(np.clip(50.0 + 50.0 * value / reach, 0.0, 100.0))


def _signed(value: float) -> str:
    return plus(rounded(value, 2))


def _spread(values: SeedValues, decimals: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return _DASH
    mean = f"{np.mean(known):.{decimals}f}"
    return (
        mean if len(known) == 1 else f"{mean} ({min(known):.{decimals}f} {_DASH} {max(known):.{decimals}f})"
    )
