"""Station scores of a run's page: maps and a table.

Shapes: S stations, K horizons.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from aqtopo.evaluation.points import MODEL
from aqtopo.evaluation.results import SCORES, read_table
from aqtopo.evaluation.scores import scores_from_sums
from aqtopo.report.base_map import Canvas
from aqtopo.report.images import FloatArray, Scale, difference_scale
from aqtopo.report.score_tables import ShadedSkill
from aqtopo.report.text import capitalised, place_text, plus, pretty_units, round_together
from aqtopo.variables import Variable, variables_from_json

MAX_ROWS = 24
"""Largest number of rows; a longer table is cut to the best and the worst stations, half of them each."""

SKILL_SCALE = Scale(-40.0, 40.0, "skill")
"""Colours of skill [%]."""

_TABLE = "stations"
_SHADES = 11


DotPaths = tuple[tuple[str, str], ...]
"""Colour and SVG path of the stations of each colour."""


@dataclass(frozen=True)
class StationHorizon:
    """One pollutant at one horizon: a sentence, and dots coloured by skill and by bias."""

    horizon_h: int
    sentence: str
    skill: DotPaths
    bias: DotPaths


@dataclass(frozen=True)
class StationRow:
    """A station: name, coordinates, and skill, RMSE and bias as text for each horizon."""

    station: str
    place: str
    cells: tuple[tuple[ShadedSkill, str, str], ...]


@dataclass(frozen=True)
class StationPollutant:
    """Maps and table of one pollutant, with one scale of bias.

    The groups of rows are all stations, or the best and the worst of `rows_of` stations.
    """

    name: str
    label: str
    units: str
    bias_scale: Scale
    horizons: tuple[StationHorizon, ...]
    groups: tuple[tuple[StationRow, ...], ...]
    rows_of: int


@dataclass(frozen=True)
class StationScores:
    """Scores at stations; `left_out` counts the other stations by reason, as text."""

    stations: int
    left_out: str
    pollutants: tuple[StationPollutant, ...]


def station_scores(run_dir: Path, canvas: Canvas) -> StationScores | None:
    """Arrange the results of `aqtopo evaluate --stations`; None if there are none.

    Raises:
        ValueError: `scores.zarr` cannot be read.
    """
    if not (run_dir / f"{SCORES}.zarr" / _TABLE).is_dir():
        return None
    sums = read_table(run_dir, _TABLE)
    scores = scores_from_sums(sums)
    scores = scores.assign(
        skill=100.0 * scores["skill"].min("reference"),
        rmse=scores["rmse"].sel(forecast=MODEL),
        bias=scores["bias"].sel(forecast=MODEL),
    ).transpose("station", "horizon", ...)
    names = [str(name) for name in scores["pollutant"].values]
    variables = variables_from_json(sums.attrs.get("variables", ()))
    known = [name for name in names if (scores["count"].sel(pollutant=name) > 0).any()]
    return StationScores(
        scores.sizes["station"],
        _left_out(sums.attrs),
        tuple(_pollutant(scores.sel(pollutant=name), variables[name], canvas) for name in known),
    )


def _left_out(head: dict[str, Any]) -> str:
    reasons = {
        "stations_outside_the_grid": "outside the grid",
        "stations_beside_masked_cells": "beside cells that are not scored",
    }
    counts = [(len(np.atleast_1d(head[key])), words) for key, words in reasons.items() if len(head[key])]
    return ", ".join(f"{count} {words}" for count, words in counts)


def _pollutant(scores: xr.Dataset, variable: Variable, canvas: Canvas) -> StationPollutant:
    bias_scale = difference_scale([scores["bias"].values])
    units = pretty_units(variable.units)
    rows = _rows(scores)
    half = MAX_ROWS // 2
    return StationPollutant(
        variable.name,
        capitalised(variable.long_name),
        units,
        bias_scale,
        tuple(
            _at_horizon(scores.sel(horizon=horizon), int(horizon), bias_scale, canvas, units)
            for horizon in scores["horizon"].values
        ),
        (rows,) if len(rows) <= MAX_ROWS else (rows[:half], rows[-half:]),
        len(rows),
    )


def _at_horizon(
    scores: xr.Dataset, horizon_h: int, bias_scale: Scale, canvas: Canvas, units: str
) -> StationHorizon:
    places = [
        canvas.place(float(lat), float(lon))
        for lat, lon in zip(scores["lat"].values, scores["lon"].values, strict=True)
    ]
    skill, bias = scores["skill"].values, scores["bias"].values
    return StationHorizon(
        horizon_h,
        f"{horizon_h} h ahead {_sentence(skill, scores['rmse'].values, bias, units)}",
        _dots(places, skill, SKILL_SCALE),
        _dots(places, bias, bias_scale),
    )


def _sentence(skill: FloatArray, rmse: FloatArray, bias: FloatArray, units: str) -> str:
    known = np.isfinite(rmse)
    if not known.any():
        return "there are no observations."
    middle_rmse, middle_bias = round_together([float(np.median(each[known])) for each in (rmse, bias)])
    return (
        f"the model is better than all baselines at {int((skill > 0).sum())} of {known.sum()} stations. "
        f"Medians over the stations: RMSE {middle_rmse}, bias {middle_bias} {units}."
    )


def _dots(places: Sequence[tuple[float, float] | None], values: FloatArray, scale: Scale) -> DotPaths:
    """Return one path per colour: hundreds of single dots would increase the size of the page."""
    shades = scale.shades(values, _SHADES)
    paths: dict[str, list[str]] = {}
    for place, shade in zip(places, shades, strict=True):
        if place is not None and shade is not None:
            paths.setdefault(shade, []).append(f"M{place[0]:.1f},{place[1]:.1f}h.1")
    return tuple((colour, "".join(points)) for colour, points in paths.items())


def _rows(scores: xr.Dataset) -> tuple[StationRow, ...]:
    """Return the stations with an observation, sorted by skill at the first horizon, the best first."""
    known = scores.isel(station=(scores["count"] > 0).any("horizon").values)
    order = np.argsort(-np.nan_to_num(known["skill"].isel(horizon=0).values, nan=-np.inf), kind="stable")
    return tuple(_row(known.isel(station=index)) for index in order)


def _row(station: xr.Dataset) -> StationRow:
    cells = []
    for skill, rmse, bias in zip(*(station[key].values for key in ("skill", "rmse", "bias")), strict=True):
        rmse_text, bias_text = round_together((rmse, bias))
        cells.append((ShadedSkill(float(skill) / 100.0), rmse_text, plus(bias_text)))
    return StationRow(
        str(station["station"].values),
        place_text(float(station["lat"]), float(station["lon"])),
        tuple(cells),
    )
