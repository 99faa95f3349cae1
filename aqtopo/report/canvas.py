"""Where a place lies on the page's maps: an equirectangular canvas, true to scale at the middle latitude."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]

WIDTH = 1000.0
"""Width of every map in its own drawing units; the browser scales it to the window."""


@dataclass(frozen=True)
class Canvas:
    """The map of one grid, north on top whichever way the latitude axis runs.

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
        """Height and width of a cell [m] at the middle latitude, on a sphere of 6371 km."""
        degree = math.pi * 6.371e6 / 180.0
        shrink = math.cos(math.radians(float(np.mean(self.lat))))
        return self._lat_step * degree, self._lon_step * degree * shrink

    @property
    def x(self) -> FloatArray:
        """(W,) drawing positions of the columns."""
        return (np.arange(len(self.lon)) + 0.5) * WIDTH / len(self.lon)

    @property
    def y(self) -> FloatArray:
        """(H,) drawing positions of rows that were put north-up, counted from the top."""
        return (np.arange(len(self.lat)) + 0.5) * self.height / len(self.lat)

    def north_up(self, field: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Turn (H, W) so that the first row is the northernmost."""
        return field[::-1] if self.lat[0] < self.lat[-1] else field

    def place(self, lat: float, lon: float) -> tuple[float, float] | None:
        """Drawing position of a point, or None outside the map."""
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


def spelled_place(lat: float, lon: float) -> str:
    """Such as `39.9°N 116.4°E`, from degrees north and east."""
    return f"{abs(lat):.1f}°{'N' if lat >= 0 else 'S'} {abs(lon):.1f}°{'E' if lon >= 0 else 'W'}"
