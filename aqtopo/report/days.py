"""Days above the limits and smoothness, as the page's tables show them."""

from collections.abc import Iterable
from dataclasses import dataclass

from aqtopo.evaluation.cases import FORECASTS, MODEL
from aqtopo.evaluation.exceedances import NO_MEANS
from aqtopo.evaluation.score_record import Exceedance, Spectrum
from aqtopo.report.scoreboard import capitalised
from aqtopo.variables import TARGET_VARIABLES, VARIABLES


@dataclass(frozen=True)
class Alarms:
    """One line: the model's days and cells above a limit, and how well each forecast tells them.

    Attributes:
        label: the pollutant with its limit [ug m-3].
        horizon_h: lead time [h].
        numbers: hits, misses, false alarms of the model.
        csi: critical success index of every forecast, as text.
        best: whether the model has the highest of them.
    """

    label: str
    horizon_h: int
    numbers: tuple[str, ...]
    csi: tuple[str, ...]
    best: bool


@dataclass(frozen=True)
class Sharpness:
    """One line: how fine the model's structure is at a horizon, as text; see `docs/evaluation.md`."""

    label: str
    horizon_h: int
    resolved_km: str
    short_waves: str


def alarms(records: Iterable[Exceedance]) -> tuple[Alarms, ...]:
    """Lines for `exceedances` of `scores.json`; none where nothing came or was forecast."""
    by_pair: dict[tuple[str, int], dict[str, Exceedance]] = {}
    for record in records:
        by_pair.setdefault((record.pollutant, record.horizon), {})[record.forecast] = record
    return tuple(_alarms(forecasts) for forecasts in by_pair.values() if _events(forecasts[MODEL]))


def no_alarms(records: Iterable[Exceedance]) -> str:
    """Why `alarms` has no line; empty where it has some, or no pollutant of the run has a limit."""
    of_model = [record for record in records if record.forecast == MODEL]
    if not of_model or any(map(_events, of_model)):
        return ""
    if any(record.correct_negatives for record in of_model):
        return "No 24-hour mean was above its limit, and none was forecast to be."
    return NO_MEANS


def sharpness(records: Iterable[Spectrum]) -> tuple[Sharpness, ...]:
    """Lines for the model in `spectra` of `scores.json`."""
    return tuple(
        Sharpness(
            _label(record),
            record.horizon,
            _text(record.resolved_km, ".0f"),
            _text(record.short_waves, ".2f"),
        )
        for record in sorted(records, key=lambda each: TARGET_VARIABLES.index(each.pollutant))
        if record.forecast == MODEL
    )


def _alarms(forecasts: dict[str, Exceedance]) -> Alarms:
    model = forecasts[MODEL]
    known = [csi for name in FORECASTS if (csi := forecasts[name].csi) is not None]
    return Alarms(
        f"{_label(model)} above {model.limit:.0f}",
        model.horizon,
        tuple(f"{number:,}" for number in (model.hits, model.misses, model.false_alarms)),
        tuple(_text(forecasts[name].csi, ".2f") for name in FORECASTS),
        model.csi is not None and model.csi >= max(known),
    )


def _events(record: Exceedance) -> int:
    return record.hits + record.misses + record.false_alarms


def _label(record: Exceedance | Spectrum) -> str:
    return capitalised(VARIABLES[record.pollutant].long_name)


def _text(value: float | None, form: str) -> str:
    return "n/a" if value is None else format(value, form)
