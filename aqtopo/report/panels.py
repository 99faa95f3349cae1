"""From a case to what the page draws: maps, scales and errors of each pollutant and horizon."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aqtopo.report.canvas import Canvas
from aqtopo.report.case import Case
from aqtopo.report.maps import Scale, concentration_scale, difference_scale
from aqtopo.report.scoreboard import capitalised, plus, pretty_units, round_together
from aqtopo.variables import VARIABLES

FloatArray = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Map:
    """One map: its title, its layer, and the same in words."""

    title: str
    note: str
    layer: str
    alt: str


@dataclass(frozen=True)
class Verification:
    """Forecast and truth of one pollutant at one horizon.

    Attributes:
        horizon_h: lead time [h].
        valid_time: the hour that is forecast.
        maps: forecast, truth, difference.
        errors: RMSE of this one map, of the model and of persistence, as text.
    """

    horizon_h: int
    valid_time: str
    maps: tuple[Map, Map, Map]
    errors: tuple[str, str]


@dataclass(frozen=True)
class Pollutant:
    """All maps of one pollutant, on two scales that they share.

    Attributes:
        name: short name.
        label: what readers call it.
        units: as people write them.
        scale: colours of concentrations.
        difference: colours of forecast minus truth.
        initial: the map at the initial time.
        verifications: one a horizon.
    """

    name: str
    label: str
    units: str
    scale: Scale
    difference: Scale
    initial: Map
    verifications: tuple[Verification, ...]


def draw_pollutants(case: Case, canvas: Canvas) -> tuple[Pollutant, ...]:
    """Draw every map of a case."""
    return tuple(_draw(case, canvas, c) for c in range(len(case.pollutants)))


def spoken_time(time: np.datetime64) -> str:
    """A time as the page writes it, such as `2018-01-15 00:00 UTC`."""
    return f"{np.datetime_as_string(time, unit='m').replace('T', ' ')} UTC"


def _draw(case: Case, canvas: Canvas, c: int) -> Pollutant:
    variable = VARIABLES[case.pollutants[c]]
    # The forecast has no say in the scale of concentrations: a wild one must look wild.
    scale = concentration_scale([case.initial[c], *case.truth[:, c]])
    difference = difference_scale(list(case.forecast[:, c] - case.truth[:, c]))
    return Pollutant(
        variable.name,
        capitalised(variable.long_name),
        pretty_units(variable.units),
        scale,
        difference,
        Map(
            f"At the start, {spoken_time(case.init_time)}",
            _mean_note(case.initial[c], variable.units),
            scale.layer(canvas, case.initial[c]),
            f"Map of {variable.long_name} at the initial time, with wind arrows.",
        ),
        tuple(_verify(case, canvas, c, k, scale, difference) for k in range(len(case.horizons_h))),
    )


def _verify(case: Case, canvas: Canvas, c: int, k: int, scale: Scale, difference: Scale) -> Verification:
    forecast, truth = case.forecast[k, c], case.truth[k, c]
    horizon = case.horizons_h[k]
    variable = VARIABLES[case.pollutants[c]]
    what = f"{variable.long_name}, {horizon} h ahead"
    model, persistence = round_together((_rmse(forecast, truth), _rmse(case.initial[c], truth)))
    return Verification(
        horizon,
        spoken_time(case.init_time + np.timedelta64(horizon, "h")),
        (
            Map(
                f"Forecast, +{horizon} h",
                _mean_note(forecast, variable.units),
                scale.layer(canvas, forecast),
                f"Map of the forecast of {what}.",
            ),
            Map(
                "Truth",
                _mean_note(truth, variable.units),
                scale.layer(canvas, truth),
                f"Map of the truth for {what}.",
            ),
            Map(
                "Forecast minus truth",
                _mean_note(forecast - truth, variable.units, signed=True),
                difference.layer(canvas, forecast - truth),
                f"Map of forecast minus truth for {what}: red too high, blue too low.",
            ),
        ),
        (model, persistence),
    )


def _rmse(forecast: FloatArray, truth: FloatArray) -> float:
    """Root mean squared error over the cells where both are known, NaN without any."""
    squares = np.square(forecast.astype(np.float64) - truth)
    known = squares[np.isfinite(squares)]
    return float(np.sqrt(known.mean())) if known.size else float("nan")


def _mean_note(field: FloatArray, units: str, signed: bool = False) -> str:
    known = field[np.isfinite(field)]
    if not known.size:
        return "no data"
    mean = float(known.mean(dtype=np.float64))
    text = round_together((mean,))[0]
    return f"mean {plus(text) if signed else text} {pretty_units(units)}"
