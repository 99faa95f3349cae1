"""The score table as the page shows it: one cell a pollutant and horizon, and honest sentences about them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from aqtopo.evaluation.cases import FORECASTS, MODEL, REFERENCES
from aqtopo.variables import VARIABLES

# Within this skill of zero, "better" or "worse" would be a word for noise.
LEVEL_SKILL = 0.01


@dataclass(frozen=True)
class Tint:
    """A skill with the colour that it gets.

    Attributes:
        skill: 1 - model / reference, of the RMSE; above 0 the model is better. NaN without scored points.
    """

    skill: float

    @property
    def known(self) -> bool:
        """Whether any point was scored."""
        return bool(np.isfinite(self.skill))

    @property
    def verdict(self) -> str:
        """`better`, `level` or `worse` than the reference, or `unknown`."""
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
        """Depth of the colour in percent; a skill of 0.4 or more has the full one."""
        return round(100 * min(abs(self.skill) / 0.4, 1.0)) if self.known else 0


@dataclass(frozen=True)
class Cell(Tint):
    """The model against the better of its references for one pollutant at one horizon.

    Attributes:
        rmse: root mean squared error by forecast (the model and its references), in the pollutant's units.
        rival: the reference with the smaller error, against which the skill is.
    """

    rmse: dict[str, float]
    rival: str

    @property
    def errors(self) -> tuple[str, ...]:
        """RMSE of the model and of its rival, as text."""
        return round_together((self.rmse[MODEL], self.rmse[self.rival]))


@dataclass(frozen=True)
class Row:
    """One pollutant: its short name, what readers call it, its units and a cell per horizon."""

    pollutant: str
    label: str
    units: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Line:
    """One line of the full table: all scores of one forecast for one pollutant and horizon."""

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
class Scoreboard:
    """All scores of a run.

    Attributes:
        horizons_h: the columns [h].
        rows: one a pollutant.
        lines: the full table.
    """

    horizons_h: tuple[int, ...]
    rows: tuple[Row, ...]
    lines: tuple[Line, ...]

    @property
    def headline(self) -> str:
        """The first pollutant at the first horizon in one sentence."""
        row, horizon = self.rows[0], self.horizons_h[0]
        cell = row.cells[0]
        if not cell.known:
            return f"{row.label} at {horizon} h has no scored point."
        (model,) = round_together([cell.rmse[MODEL]])
        others = ", ".join(
            f"{name} {value}"
            for name, value in zip(
                REFERENCES, round_together([cell.rmse[name] for name in REFERENCES]), strict=True
            )
        )
        verdicts = {
            "better": f"{abs(cell.skill):.0%} less than {cell.rival}, the better of the two references",
            "worse": f"{abs(cell.skill):.0%} more than {cell.rival}, which is the better forecast here",
            "level": f"no real difference from {cell.rival}",
        }
        return (
            f"{row.label} {horizon} h ahead: the model is off by {model} {row.units} (RMSE), "
            f"{verdicts[cell.verdict]} ({others})."
        )


def score_board(scores: xr.Dataset) -> Scoreboard:
    """Arrange scores for the page.

    Args:
        scores: `rmse`, `mae`, `bias` (forecast, pollutant, horizon) and `count` (pollutant, horizon), as
            `aqtopo evaluate` makes them.
    """
    pollutants = [str(name) for name in scores["pollutant"].values]
    horizons = tuple(int(hours) for hours in scores["horizon"].values)
    rows = tuple(
        Row(
            name,
            capitalised(VARIABLES[name].long_name),
            pretty_units(VARIABLES[name].units),
            tuple(_cell(scores, name, h) for h in horizons),
        )
        for name in pollutants
    )
    lines = tuple(
        _line(scores, name, h, method) for name in pollutants for h in horizons for method in FORECASTS
    )
    return Scoreboard(horizons, rows, lines)


def capitalised(name: str) -> str:
    """A name as it stands at the head of a row: `sulfur dioxide` becomes `Sulfur dioxide`."""
    return name[:1].upper() + name[1:]


def pretty_units(units: str) -> str:
    """UDUNITS text as people write it: `ug m-3` becomes `µg m⁻³`."""
    superscripts = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    words = [word.replace("ug", "µg") for word in units.split()]
    return "\N{NO-BREAK SPACE}".join(
        word.rstrip("-0123456789") + word[len(word.rstrip("-0123456789")) :].translate(superscripts)
        for word in words
    )


def round_together(values: Sequence[float]) -> tuple[str, ...]:
    """Numbers to three figures of the largest, so that they can be compared at a glance."""
    largest = max((abs(value) for value in values if np.isfinite(value)), default=1.0)
    decimals = 0 if largest >= 100 else 1 if largest >= 10 else 2
    return tuple(rounded(value, decimals) if np.isfinite(value) else "n/a" for value in values)


def rounded(value: float, decimals: int) -> str:
    """A number as text; a zero to which it was rounded has no sign."""
    return f"{value:z.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def plus(text: str) -> str:
    """A rounded number with its sign, also a positive one."""
    return f"+{text}" if text.strip("0.")[:1].isdigit() else text


def _cell(scores: xr.Dataset, pollutant: str, horizon_h: int) -> Cell:
    column = scores["rmse"].sel(pollutant=pollutant, horizon=horizon_h)
    rmse = {method: float(column.sel(forecast=method)) for method in FORECASTS}
    rival = min(REFERENCES, key=lambda name: rmse[name] if np.isfinite(rmse[name]) else np.inf)
    skill = 1.0 - rmse[MODEL] / rmse[rival] if rmse[rival] > 0.0 else float("nan")
    return Cell(skill, rmse, rival)


def _line(scores: xr.Dataset, pollutant: str, horizon_h: int, method: str) -> Line:
    picked = scores.sel(pollutant=pollutant, horizon=horizon_h)
    rmse, mae, bias = (float(picked[name].sel(forecast=method)) for name in ("rmse", "mae", "bias"))
    label = capitalised(VARIABLES[pollutant].long_name)
    return Line(label, horizon_h, method, rmse, mae, bias, int(picked["count"]))
