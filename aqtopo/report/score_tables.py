"""Score tables of a run's page."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from aqtopo.evaluation.exceedances import NO_DAILY_MEANS
from aqtopo.evaluation.points import BASELINES, FORECASTS, MODEL
from aqtopo.evaluation.score_record import Exceedance, PairScores, Skill, Spectrum
from aqtopo.report.text import capitalised, plus, pretty_units, round_together, rounded
from aqtopo.variables import Variables, variables_from_json

# A smaller absolute skill is noise.
LEVEL_SKILL = 0.01


@dataclass(frozen=True)
class ShadedSkill:
    """A skill, 1 - RMSE of the model / RMSE of the baseline, and its colour; NaN without scored points."""

    skill: float

    @property
    def known(self) -> bool:
        """True with a scored point."""
        return bool(np.isfinite(self.skill))

    @property
    def verdict(self) -> str:
        """`better`, `level` or `worse` than the baseline, or `unknown`."""
        if not self.known:
            return "unknown"
        if abs(self.skill) < LEVEL_SKILL:
            return "level"
        return "better" if self.skill > 0 else "worse"

    @property
    def percent(self) -> str:
        """Skill with its sign, such as `+23 %`."""
        if not self.known:
            return "no data"
        return f"{plus(rounded(100 * self.skill, 0))}\N{NO-BREAK SPACE}%"

    @property
    def strength(self) -> int:
        """Depth of the colour in percent; 100 for an absolute skill of 0.4 or more."""
        return round(100 * min(abs(self.skill) / 0.4, 1.0)) if self.known else 0


@dataclass(frozen=True)
class SkillCell(ShadedSkill):
    """Skill against the best baseline; `rmse` by forecast, in the pollutant's units."""

    rmse: dict[str, float]
    best_reference: str

    @property
    def errors(self) -> tuple[str, ...]:
        """RMSE of the model and of the best baseline, as text."""
        return round_together((self.rmse[MODEL], self.rmse[self.best_reference]))


@dataclass(frozen=True)
class PollutantRow:
    """One pollutant: short name, label, units and a cell per horizon."""

    pollutant: str
    label: str
    units: str
    cells: tuple[SkillCell, ...]


@dataclass(frozen=True)
class ScoreLine:
    """All scores of one forecast for one pollutant and horizon."""

    label: str
    horizon_h: int
    forecast: str
    rmse: float
    mae: float
    bias: float
    count: int

    @property
    def texts(self) -> tuple[str, ...]:
        """RMSE, mean absolute error and bias with the same decimals, the bias with its sign."""
        rmse, mae, bias = round_together((self.rmse, self.mae, self.bias))
        return rmse, mae, plus(bias)


@dataclass(frozen=True)
class ScoreTable:
    """All scores of a run: a row per pollutant, a column per horizon [h], and the lines of the full table."""

    horizons_h: tuple[int, ...]
    rows: tuple[PollutantRow, ...]
    lines: tuple[ScoreLine, ...]

    @property
    def headline(self) -> str:
        """One sentence about the first pollutant at the first horizon."""
        row, horizon = self.rows[0], self.horizons_h[0]
        cell = row.cells[0]
        if not cell.known:
            return f"{row.label} at {horizon} h has no scored point."
        (model,) = round_together([cell.rmse[MODEL]])
        errors = round_together([cell.rmse[name] for name in BASELINES])
        others = ", ".join(f"{name} {error}" for name, error in zip(BASELINES, errors, strict=True))
        verdicts = {
            "better": f"{abs(cell.skill):.0%} less than {cell.best_reference}, the best baseline",
            "worse": f"{abs(cell.skill):.0%} more than {cell.best_reference}, the best baseline",
            "level": f"within {LEVEL_SKILL:.0%} of {cell.best_reference}, the best baseline",
        }
        return (
            f"{row.label} {horizon} h ahead: the RMSE of the model is {model} {row.units}, "
            f"{verdicts[cell.verdict]} ({others})."
        )


def make_score_table(scores: xr.Dataset) -> ScoreTable:
    """Arrange the scores of `overall` for the page."""
    variables = variables_from_json(scores.attrs.get("variables", ()))
    horizons = tuple(int(hours) for hours in scores["horizon"].values)
    rows, lines = [], []
    for name in scores["pollutant"].values.tolist():
        label, units = capitalised(variables[name].long_name), pretty_units(variables[name].units)
        pairs = [scores.sel(pollutant=name, horizon=horizon) for horizon in horizons]
        rows.append(PollutantRow(name, label, units, tuple(map(_cell, pairs))))
        for horizon, pair in zip(horizons, pairs, strict=True):
            for forecast in FORECASTS:
                rmse, mae, bias = (
                    float(pair[score].sel(forecast=forecast)) for score in ("rmse", "mae", "bias")
                )
                lines.append(ScoreLine(label, horizon, forecast, rmse, mae, bias, int(pair["count"])))
    return ScoreTable(horizons, tuple(rows), tuple(lines))


def _cell(pair: xr.Dataset) -> SkillCell:
    rmse = {name: float(pair["rmse"].sel(forecast=name)) for name in FORECASTS}
    best_reference = min(BASELINES, key=lambda name: rmse[name] if np.isfinite(rmse[name]) else np.inf)
    skill = 1.0 - rmse[MODEL] / rmse[best_reference] if rmse[best_reference] > 0.0 else float("nan")
    return SkillCell(skill, rmse, best_reference)


STRATA = ("area", "season")
"""Strata on the page; 24 hours are too many."""


@dataclass(frozen=True)
class StratumRow:
    """Skill against the best baseline, and its name, in one area or season at every horizon."""

    label: str
    cells: tuple[tuple[ShadedSkill, str], ...]


@dataclass(frozen=True)
class Breakdown:
    """Skill of one pollutant: rows by area, then by season."""

    label: str
    groups: tuple[tuple[StratumRow, ...], ...]


def breakdown_tables(
    strata: Mapping[str, Mapping[str, Sequence[PairScores]]], variables: Variables
) -> tuple[Breakdown, ...]:
    """Return a table for every pollutant from `strata` of `scores.json`; none without strata."""
    known = [strata[name] for name in STRATA if strata.get(name)]
    if not known:
        return ()

    def row(label: str, entries: Sequence[PairScores], pollutant: str) -> StratumRow:
        own = [entry for entry in entries if entry.pollutant == pollutant]
        return StratumRow(label, tuple(_least_skill(entry.skill) for entry in own))

    pollutants = dict.fromkeys(entry.pollutant for entry in next(iter(known[0].values())))
    return tuple(
        Breakdown(
            capitalised(variables[pollutant].long_name),
            tuple(tuple(row(*labelled, pollutant) for labelled in each.items()) for each in known),
        )
        for pollutant in pollutants
    )


def _least_skill(skill: Skill) -> tuple[ShadedSkill, str]:
    """Return the skill against the best baseline, which is the lowest, and its name; NaN without one."""
    known = [(value, name) for name in BASELINES if (value := getattr(skill, name)) is not None]
    value, name = min(known, default=(np.nan, ""), key=lambda each: each[0])
    return ShadedSkill(value), name


@dataclass(frozen=True)
class ExceedanceRow:
    """The model's counts for a limit, and the CSI of all forecasts; `best`: the model's is the highest."""

    label: str
    horizon_h: int
    numbers: tuple[str, ...]
    csi: tuple[str, ...]
    best: bool


@dataclass(frozen=True)
class SharpnessRow:
    """Spectral scores of the model at one horizon, as text; see `docs/evaluation.md`."""

    label: str
    horizon_h: int
    resolved_km: str
    short_waves: str


def exceedance_rows(records: Iterable[Exceedance], variables: Variables) -> tuple[ExceedanceRow, ...]:
    """Return rows for `exceedances` of `scores.json`, without those that have neither event nor alarm."""
    by_pair: dict[tuple[str, int], dict[str, Exceedance]] = {}
    for record in records:
        by_pair.setdefault((record.pollutant, record.horizon), {})[record.forecast] = record
    return tuple(
        _exceedance_row(forecasts, variables) for forecasts in by_pair.values() if _events(forecasts[MODEL])
    )


def no_exceedances(records: Iterable[Exceedance]) -> str:
    """Return the reason why `exceedance_rows` is empty; empty if it has rows or no pollutant has a limit."""
    of_model = [record for record in records if record.forecast == MODEL]
    if not of_model or any(map(_events, of_model)):
        return ""
    if any(record.correct_negatives for record in of_model):
        return "No 24-hour mean was above its limit, in the truth or in the forecast."
    return NO_DAILY_MEANS


def sharpness_rows(records: Iterable[Spectrum], variables: Variables) -> tuple[SharpnessRow, ...]:
    """Return rows for the model in `spectra` of `scores.json`, by pollutant in the order of `variables`."""
    order = {name: place for place, name in enumerate(variables)}
    return tuple(
        SharpnessRow(
            _label(record, variables),
            record.horizon,
            _text(record.resolved_km, ".0f"),
            _text(record.short_waves, ".2f"),
        )
        for record in sorted(records, key=lambda each: order[each.pollutant])
        if record.forecast == MODEL
    )


def _exceedance_row(forecasts: dict[str, Exceedance], variables: Variables) -> ExceedanceRow:
    model = forecasts[MODEL]
    known = [csi for name in FORECASTS if (csi := forecasts[name].csi) is not None]
    return ExceedanceRow(
        f"{_label(model, variables)} above {model.limit:.0f}",
        model.horizon,
        tuple(f"{number:,}" for number in (model.hits, model.misses, model.false_alarms)),
        tuple(_text(forecasts[name].csi, ".2f") for name in FORECASTS),
        model.csi is not None and model.csi >= max(known),
    )


def _events(record: Exceedance) -> int:
    return record.hits + record.misses + record.false_alarms


def _label(record: Exceedance | Spectrum, variables: Variables) -> str:
    return capitalised(variables[record.pollutant].long_name)


def _text(value: float | None, form: str) -> str:
    return "n/a" if value is None else format(value, form)
