"""What every map shares: shaded relief, and as SVG paths contours, coast, cities, degrees."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from contourpy import contour_generator
from matplotlib.colors import LightSource
from PIL import Image

from aqtopo.report.canvas import WIDTH, Canvas
from aqtopo.report.images import png_uri

FloatArray = npt.NDArray[np.floating[Any]]

CONTOUR_LEVELS_M = (500.0, 1500.0, 3000.0, 4500.0)

CITIES = (
    ("Beijing", 39.90, 116.41),
    ("Shanghai", 31.23, 121.47),
    ("Guangzhou", 23.13, 113.26),
    ("Chengdu", 30.66, 104.07),
    ("Xi'an", 34.34, 108.94),
    ("Lhasa", 29.65, 91.11),
    ("Ürümqi", 43.83, 87.62),
)
"""Name, degrees north, degrees east: for finding one's way; those outside the grid are left out."""

# Relief is exaggerated, or plains and hills would look alike on a map that is 5000 km wide.
_VERTICAL_EXAGGERATION = 25.0
_DARKEST_SHADE = 0.52


@dataclass(frozen=True)
class Label:
    """A word on the map at a drawing position."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Terrain:
    """The shared layers of one grid.

    Attributes:
        shade: data URI of the shaded relief, grey, to be multiplied with the colours below it.
        contours: SVG path of the elevation contours at `CONTOUR_LEVELS_M`.
        coast: SVG path of the border of the scored area; empty where everything is scored.
        cities: cities inside the grid.
        meridians: degree labels along the lower edge.
        parallels: degree labels along the left edge.
    """

    shade: str
    contours: str
    coast: str
    cities: tuple[Label, ...]
    meridians: tuple[Label, ...]
    parallels: tuple[Label, ...]


def draw_terrain(canvas: Canvas, elevation_m: FloatArray, mask: FloatArray) -> Terrain:
    """Draw the shared layers.

    Args:
        canvas: the grid.
        elevation_m: (H, W) elevation [m].
        mask: (H, W), 1 where the scores count.
    """
    elevation = canvas.north_up(np.nan_to_num(elevation_m))
    places = [(name, canvas.place(lat, lon)) for name, lat, lon in CITIES]
    return Terrain(
        shade=png_uri(_hillshade(canvas, elevation)),
        contours="".join(_contour_path(canvas, elevation, level) for level in CONTOUR_LEVELS_M),
        coast=_outline(canvas, canvas.north_up(mask) > 0),
        cities=tuple(Label(*place, name) for name, place in places if place is not None),
        meridians=_meridians(canvas),
        parallels=_parallels(canvas),
    )


def _hillshade(canvas: Canvas, elevation: FloatArray) -> npt.NDArray[np.uint8]:
    """Light from the north-west; level ground stays white, so that colours on it keep their meaning."""
    factor = max(1, round(640 / elevation.shape[1]))
    height, width = elevation.shape
    fine = np.asarray(
        Image.fromarray(elevation.astype(np.float32)).resize(
            (width * factor, height * factor), Image.Resampling.BICUBIC
        )
    )
    dy, dx = (size / factor for size in canvas.cell_size_m)
    light = LightSource(azdeg=315, altdeg=45).hillshade(
        fine, vert_exag=_VERTICAL_EXAGGERATION, dx=dx, dy=dy, fraction=1.0
    )
    level = math.sin(math.radians(45))
    shade = np.clip(light / level, _DARKEST_SHADE, 1.0)
    return np.round(shade * 63).astype(np.uint8) * 4 + 3  # 64 greys: half the bytes, no visible bands


def _contour_path(canvas: Canvas, field: FloatArray, level: float) -> str:
    lines = contour_generator(canvas.x, canvas.y, field).lines(level)
    return "".join(_polyline(np.asarray(line)) for line in lines if len(line) > 3)


def _outline(canvas: Canvas, inside: npt.NDArray[np.bool_]) -> str:
    """The border of an area along the edges of its cells, each straight stretch one line."""
    width, height = WIDTH / inside.shape[1], canvas.height / inside.shape[0]
    across = "".join(
        f"M{start * width:.1f},{row * height:.1f}H{end * width:.1f}"
        for row, start, end in _stretches(inside[1:] != inside[:-1])
    )
    down = "".join(
        f"M{column * width:.1f},{start * height:.1f}V{end * height:.1f}"
        for column, start, end in _stretches((inside[:, 1:] != inside[:, :-1]).T)
    )
    return across + down


def _stretches(border: npt.NDArray[np.bool_]) -> list[tuple[int, int, int]]:
    """Runs of true values: index of the edge below row i (i + 1), start and end along the row."""
    padded = np.pad(border, ((0, 0), (1, 1))).astype(np.int8)
    rows, starts = np.nonzero(np.diff(padded, axis=1) == 1)
    _, ends = np.nonzero(np.diff(padded, axis=1) == -1)
    return list(zip((rows + 1).tolist(), starts.tolist(), ends.tolist(), strict=True))


def _polyline(points: FloatArray) -> str:
    return "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _meridians(canvas: Canvas) -> tuple[Label, ...]:
    middle = float(np.mean(canvas.lat))
    places = [(degrees, canvas.place(middle, degrees)) for degrees in _round_degrees(canvas.lon)]
    return tuple(
        Label(place[0], canvas.height, f"{abs(degrees)}°{'E' if degrees >= 0 else 'W'}")
        for degrees, place in places
        if place is not None
    )


def _parallels(canvas: Canvas) -> tuple[Label, ...]:
    middle = float(np.mean(canvas.lon))
    places = [(degrees, canvas.place(degrees, middle)) for degrees in _round_degrees(canvas.lat)]
    return tuple(
        Label(0.0, place[1], f"{abs(degrees)}°{'N' if degrees >= 0 else 'S'}")
        for degrees, place in places
        if place is not None
    )


def _round_degrees(centres: FloatArray) -> range:
    """Four to eight round values well inside the axis."""
    low, high = float(np.min(centres)), float(np.max(centres))
    step = next(step for step in (1, 2, 5, 10, 20, 30, 60) if (high - low) / step <= 7)
    return range(math.ceil((low + step / 4) / step) * step, math.floor(high - step / 4) + 1, step)
