"""Base map: projection, shaded relief, contours, coast, cities, and wind arrows."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from contourpy import contour_generator
from matplotlib.colors import LightSource
from PIL import Image

from aqtopo.data.grid import EARTH_RADIUS
from aqtopo.report.images import FloatArray, png_uri
from aqtopo.report.text import degrees_text

WIDTH = 1000.0
"""Width of every map in drawing units; the browser scales it to the window."""


@dataclass(frozen=True)
class Canvas:
    """Equirectangular map of one grid, north on top, true to scale at the middle latitude.

    Attributes:
        lat: (H,) cell centres [degrees north], ascending or descending, evenly spaced.
        lon: (W,) cell centres [degrees east], ascending, evenly spaced.
    """

    lat: FloatArray
    lon: FloatArray

    @property
    def aspect(self) -> float:
        """Width over height; a degree of longitude is shortened by the cosine of the middle latitude."""
        middle = math.radians(float(np.mean(self.lat)))
        return float(len(self.lon) * self._lon_step * math.cos(middle) / (len(self.lat) * self._lat_step))

    @property
    def height(self) -> float:
        """Height in drawing units."""
        return WIDTH / self.aspect

    @property
    def cell_size_m(self) -> tuple[float, float]:
        """Height and width of a cell [m] at the middle latitude."""
        degree = math.radians(EARTH_RADIUS)
        shrink = math.cos(math.radians(float(np.mean(self.lat))))
        return self._lat_step * degree, self._lon_step * degree * shrink

    @property
    def x(self) -> FloatArray:
        """(W,) drawing positions of the columns."""
        return (np.arange(len(self.lon)) + 0.5) * WIDTH / len(self.lon)

    @property
    def y(self) -> FloatArray:
        """(H,) drawing positions of the rows, the northernmost first."""
        return (np.arange(len(self.lat)) + 0.5) * self.height / len(self.lat)

    def north_up(self, field: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return (H, W) with the northernmost row first."""
        return field[::-1] if self.lat[0] < self.lat[-1] else field

    def place(self, lat: float, lon: float) -> tuple[float, float] | None:
        """Return the drawing position of a point; None outside the map."""
        north = float(np.max(self.lat)) + self._lat_step / 2
        west = float(np.min(self.lon)) - self._lon_step / 2
        x = (lon - west) / (len(self.lon) * self._lon_step) * WIDTH
        y = (north - lat) / (len(self.lat) * self._lat_step) * self.height
        inside = 0.0 <= x <= WIDTH and 0.0 <= y <= self.height
        return (x, y) if inside else None

    @property
    def _lat_step(self) -> float:
        return float(abs(self.lat[-1] - self.lat[0])) / (len(self.lat) - 1)

    @property
    def _lon_step(self) -> float:
        return float(abs(self.lon[-1] - self.lon[0])) / (len(self.lon) - 1)


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
"""Name, degrees north, degrees east; cities outside the grid are skipped."""

# On a map of 5000 km, hills are visible only if the relief is exaggerated.
_VERTICAL_EXAGGERATION = 25.0
_DARKEST_SHADE = 0.52


@dataclass(frozen=True)
class MapLabel:
    """A text at a drawing position."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class BaseMap:
    """Layers that all maps of a grid share.

    `shade` is the data URI of the relief, which is multiplied with the colours. `contours` and `coast` are
    SVG paths of elevations and of the border of the scored area (empty without one).
    """

    shade: str
    contours: str
    coast: str
    cities: tuple[MapLabel, ...]
    meridians: tuple[MapLabel, ...]
    parallels: tuple[MapLabel, ...]


def draw_base_map(canvas: Canvas, elevation_m: FloatArray, mask: FloatArray) -> BaseMap:
    """Draw the base map from elevation [m] and mask (1 in the scored area), each (H, W)."""
    elevation = canvas.north_up(np.nan_to_num(elevation_m))
    places = [(name, canvas.place(lat, lon)) for name, lat, lon in CITIES]
    meridians, parallels = _degree_labels(canvas)
    return BaseMap(
        shade=png_uri(_hillshade(canvas, elevation)),
        contours="".join(_contour_path(canvas, elevation, level) for level in CONTOUR_LEVELS_M),
        coast=_outline(canvas, canvas.north_up(mask) > 0),
        cities=tuple(MapLabel(*place, name) for name, place in places if place is not None),
        meridians=meridians,
        parallels=parallels,
    )


def _hillshade(canvas: Canvas, elevation: FloatArray) -> npt.NDArray[np.uint8]:
    """Shade the relief, lit from the north-west; level ground stays white and keeps its colours."""
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
    return "".join(
        "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in np.asarray(line)) for line in lines if len(line) > 3
    )


def _outline(canvas: Canvas, inside: npt.NDArray[np.bool_]) -> str:
    """Return the border of an area along its cells' edges, one line per straight stretch."""
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
    """Return runs of true values: index i + 1 of the edge below row i, start and end along the row."""
    padded = np.pad(border, ((0, 0), (1, 1))).astype(np.int8)
    rows, starts = np.nonzero(np.diff(padded, axis=1) == 1)
    _, ends = np.nonzero(np.diff(padded, axis=1) == -1)
    return list(zip((rows + 1).tolist(), starts.tolist(), ends.tolist(), strict=True))


def _degree_labels(canvas: Canvas) -> tuple[tuple[MapLabel, ...], tuple[MapLabel, ...]]:
    """Return labels of round degrees along the lower edge and along the left edge."""
    lat, lon = float(np.mean(canvas.lat)), float(np.mean(canvas.lon))
    meridians = ((degrees, canvas.place(lat, degrees)) for degrees in _round_degrees(canvas.lon))
    parallels = ((degrees, canvas.place(degrees, lon)) for degrees in _round_degrees(canvas.lat))
    return (
        tuple(MapLabel(at[0], canvas.height, degrees_text(east, "EW")) for east, at in meridians if at),
        tuple(MapLabel(0.0, at[1], degrees_text(north, "NS")) for north, at in parallels if at),
    )


def _round_degrees(centres: FloatArray) -> range:
    """Return four to eight round values inside the axis."""
    low, high = float(np.min(centres)), float(np.max(centres))
    step = next(step for step in (1, 2, 5, 10, 20, 30, 60) if (high - low) / step <= 7)
    return range(math.ceil((low + step / 4) / step) * step, math.floor(high - step / 4) + 1, step)


_ARROWS_ACROSS = 16
_HEAD = 13.0
"""Longest barb of an arrow, in drawing units."""


@dataclass(frozen=True)
class WindArrows:
    """Wind arrows, which point downwind: an SVG path per time, empty without wind, and a reference length."""

    paths: tuple[str, ...]
    ten_metres_per_second: float


def draw_wind_arrows(canvas: Canvas, wind_T2HW: FloatArray) -> WindArrows:
    """Draw block means of the eastward and northward wind (T, 2, H, W) [m/s], NaN where missing."""
    block = max(1, round(len(canvas.lon) / _ARROWS_ACROSS))
    north_up = np.array([[canvas.north_up(field) for field in wind] for wind in wind_T2HW], np.float64)
    wind = xr.DataArray(north_up, {"y": canvas.y, "x": canvas.x}, ("time", "component", "y", "x"))
    means = wind.coarsen(y=block, x=block, boundary="trim").reduce(np.mean)
    u, v = means.transpose("component", ...).values
    speeds = np.hypot(u, v)
    known = speeds[np.isfinite(speeds)]
    typical = float(np.percentile(known, 95)) if known.size else 0.0
    scale = 0.9 * block * WIDTH / len(canvas.lon) / max(typical, 1.0)
    x, y = means["x"].values, means["y"].values
    paths = tuple(_arrows(x, y, dx, dy) for dx, dy in zip(scale * u, -scale * v, strict=True))
    return WindArrows(paths, ten_metres_per_second=10.0 * scale)


def _arrows(x: FloatArray, y: FloatArray, dx: FloatArray, dy: FloatArray) -> str:
    places = np.argwhere(np.isfinite(dx) & np.isfinite(dy))
    return "".join(_arrow(x[column], y[row], dx[row, column], dy[row, column]) for row, column in places)


def _arrow(x: float, y: float, dx: float, dy: float) -> str:
    """Return a shaft centred on (x, y) and two barbs at its tip."""
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
