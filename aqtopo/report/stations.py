"""Scores at stations as the page shows them: dots on the map, and a table.

Shapes: S stations, K horizons.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from aqtopo.evaluation.points import MODEL
from aqtopo.evaluation.results import SCORES, read_table
from aqtopo.evaluation.scores import scores_from_sums
from aqtopo.report.base_map import Canvas
from aqtopo.report.images import Scale, difference_scale
from aqtopo.report.score_tables import ShadedSkill
from aqtopo.report.text import capitalised, place_text, plus, pretty_units, round_together
from aqtopo.variables import VARIABLES

FloatArray = npt.NDArray[np.floating[Any]]

MAX_ROWS = 24
"""A table of more stations shows the best and the worst of them, half of this each."""

SKILL_SCALE = Scale(-40.0, 40.0, "skill")
"""Skill [%]."""

_TABLE = "stations"
_SHADES = 11


@dataclass(frozen=True)
class DotPath:
    """Stations of one colour: an SVG path with a point for each."""

    colour: str
    path: str


@dataclass(frozen=True)
class StationHorizon:
    """One pollutant at one horizon.

    Attributes:
        horizon_h: lead time [h].
        sentence: at how many stations the model is better, and how far it is off.
        skill: dots coloured by skill against the better reference.
        bias: dots coloured by bias.
    """

    horizon_h: int
    sentence: str
    skill: tuple[DotPath, ...]
    bias: tuple[DotPath, ...]


@dataclass(frozen=True)
class StationRow:
    """A station: its name, where it is and, a horizon, the skill, the RMSE and the bias as text."""

    station: str
    place: str
    cells: tuple[tuple[ShadedSkill, str, str], ...]


@dataclass(frozen=True)
class StationPollutant:
    """One pollutant: its maps, on one scale of bias, and its table.

    Attributes:
        name: short name.
        label: what readers call it.
        units: as people write them.
        bias_scale: colours of bias.
        horizons: one a horizon.
        groups: rows that belong together: all stations, or the best and the worst.
        rows_of: how many stations the rows are chosen from.
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
    """Scores at stations.

    Attributes:
        stations: how many there are.
        left_out: why others are not among them, in words; empty where none was left out.
        pollutants: those with an observation.
    """

    stations: int
    left_out: str
    pollutants: tuple[StationPollutant, ...]


def station_scores(run_dir: Path, canvas: Canvas) -> StationScores | None:
    """Arrange what `aqtopo evaluate --stations` left for the page; None where it was not asked for.

    Raises:
        ValueError: `scores.zarr` cannot be read.
    """
    if not (run_dir / f"{SCORES}.zarr" / _TABLE).is_dir():
        return None
    scores = scores_from_sums(read_table(run_dir, _TABLE))
    scores = scores.assign(
        skill=100.0 * scores["skill"].min("reference"),
        rmse=scores["rmse"].sel(forecast=MODEL),
        bias=scores["bias"].sel(forecast=MODEL),
    ).transpose("station", "horizon", ...)
    names = [str(name) for name in scores["pollutant"].values]
    known = [name for name in names if (scores["count"].sel(pollutant=name) > 0).any()]
    return StationScores(
        scores.sizes["station"],
        _left_out(read_table(run_dir, _TABLE).attrs),
        tuple(_pollutant(scores.sel(pollutant=name), name, canvas) for name in known),
    )


def _left_out(head: dict[str, Any]) -> str:
    reasons = {
        "stations_outside_the_grid": "outside the grid",
        "stations_beside_masked_cells": "beside cells that are not scored",
    }
    counts = [(len(np.atleast_1d(head[key])), words) for key, words in reasons.items() if len(head[key])]
    return ", ".join(f"{count} {words}" for count, words in counts)


def _pollutant(scores: xr.Dataset, name: str, canvas: Canvas) -> StationPollutant:
    variable = VARIABLES[name]
    bias_scale = difference_scale([scores["bias"].values])
    units = pretty_units(variable.units)
    rows = _rows(scores)
    half = MAX_ROWS // 2
    return StationPollutant(
        name,
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
        return "nothing was observed."
    middle_rmse, middle_bias = round_together([float(np.median(each[known])) for each in (rmse, bias)])
    return (
        f"the model is better than both references at {int((skill > 0).sum())} of {known.sum()} stations. "
        f"Medians over the stations: RMSE {middle_rmse}, bias {middle_bias} {units}."
    )


def _dots(
    places: Sequence[tuple[float, float] | None], values: FloatArray, scale: Scale
) -> tuple[DotPath, ...]:
    """A path for each shade that occurs: hundreds of stations stay small."""
    shades = scale.shades(values, _SHADES)
    paths: dict[str, list[str]] = {}
    for place, shade in zip(places, shades, strict=True):
        if place is not None and shade is not None:
            paths.setdefault(shade, []).append(f"M{place[0]:.1f},{place[1]:.1f}h.1")
    return tuple(DotPath(colour, "".join(points)) for colour, points in paths.items())


def _rows(scores: xr.Dataset) -> tuple[StationRow, ...]:
    """Stations with an observation, the best at the first horizon first."""
    known = scores.isel(station=(scores["count"] > 0).any("horizon").values)
    order = np.argsort(-np.nan_to_num(known["skill"].isel(horizon=0).values, nan=-np.inf), kind="stable")
    return tuple(_row(known.isel(station=index)) for index in order)


def _row(station: xr.Dataset) -> StationRow:
    columns = zip(*(station[key].values.tolist() for key in ("skill", "rmse", "bias")), strict=True)
    return StationRow(
        str(station["station"].values),
        place_text(float(station["lat"]), float(station["lon"])),
        tuple(_cell(*column) for column in columns),
    )


def _cell(skill: float, rmse: float, bias: float) -> tuple[ShadedSkill, str, str]:
    rmse_text, bias_text = round_together((rmse, bias))
    return ShadedSkill(skill / 100.0), rmse_text, plus(bias_text)
