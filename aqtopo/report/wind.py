"""The wind as arrows, for every time that the page shows, on one scale of speed."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aqtopo.report.canvas import WIDTH, Canvas

FloatArray = npt.NDArray[np.floating[Any]]

_ARROWS_ACROSS = 16
_HEAD = 13.0
"""Longest barb of an arrow, in drawing units."""


@dataclass(frozen=True)
class Wind:
    """Arrows that point where the air moves.

    Attributes:
        paths: an SVG path a time; empty where the data have no wind.
        ten_metres_per_second: length of 10 m/s in drawing units, the same in all of them.
    """

    paths: tuple[str, ...]
    ten_metres_per_second: float


def draw_wind(canvas: Canvas, wind_T2HW: FloatArray) -> Wind:
    """Draw block means of the wind.

    Args:
        canvas: the grid.
        wind_T2HW: (T, 2, H, W) eastward and northward wind [m/s], NaN where there is none.
    """
    block = max(1, round(len(canvas.lon) / _ARROWS_ACROSS))
    means = [
        tuple(_block_means(canvas.north_up(component), block) for component in wind_2HW)
        for wind_2HW in wind_T2HW
    ]
    speeds = np.concatenate([np.hypot(u, v).ravel() for u, v in means])
    known = speeds[np.isfinite(speeds)]
    typical = float(np.percentile(known, 95)) if known.size else 0.0
    scale = 0.9 * block * WIDTH / len(canvas.lon) / max(typical, 1.0)
    x, y = (_block_centres(positions, block) for positions in (canvas.x, canvas.y))
    return Wind(tuple(_arrows(x, y, scale * u, -scale * v) for u, v in means), 10.0 * scale)


def _arrows(x: FloatArray, y: FloatArray, dx: FloatArray, dy: FloatArray) -> str:
    places = np.argwhere(np.isfinite(dx) & np.isfinite(dy))
    return "".join(_arrow(x[column], y[row], dx[row, column], dy[row, column]) for row, column in places)


def _arrow(x: float, y: float, dx: float, dy: float) -> str:
    """A shaft centred on (x, y) and two barbs at its tip."""
    length = math.hypot(dx, dy)
    if length < 1.0:
        return ""
    head = min(0.4 * length, _HEAD)
    tip_x, tip_y = x + dx / 2, y + dy / 2
    angle = math.atan2(dy, dx)
    left, right = (
        (tip_x - head * math.cos(angle + turn), tip_y - head * math.sin(angle + turn)) for turn in (0.5, -0.5)
    )
    return (
        f"M{x - dx / 2:.1f},{y - dy / 2:.1f}L{tip_x:.1f},{tip_y:.1f}"
        f"M{left[0]:.1f},{left[1]:.1f}L{tip_x:.1f},{tip_y:.1f}L{right[0]:.1f},{right[1]:.1f}"
    )


def _block_means(field: FloatArray, block: int) -> FloatArray:
    rows, columns = (size // block for size in field.shape)
    whole = field[: rows * block, : columns * block].astype(np.float64)
    means: FloatArray = whole.reshape(rows, block, columns, block).mean(axis=(1, 3))
    return means


def _block_centres(positions: FloatArray, block: int) -> FloatArray:
    whole = positions[: len(positions) // block * block]
    centres: FloatArray = whole.reshape(-1, block).mean(axis=1)
    return centres
