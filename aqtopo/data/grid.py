"""Regular latitude-longitude grid of a store."""

import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
"""Float array. Shapes: T hours, S species, H latitudes, W longitudes; fields are float32."""

EARTH_RADIUS = 6.371e6
"""[m]"""

MIN_CELLS = 4
"""Minimum number of cells along each axis."""
LATITUDES, LONGITUDES = (0.0, 80.0), (-180.0, 180.0)
"""Limits [degrees]. The simulator has the seasons and westerlies of the northern hemisphere."""


def parse_grid(text: str) -> tuple[int, int]:
    """Parse a grid such as `32x64`, latitudes first.

    Raises:
        ValueError: the text is not two integers joined by an x.
    """
    match = re.fullmatch(r"(\d+)[x×](\d+)", text.strip().lower())
    if match is None:
        raise ValueError(f"--grid {text!r} is not of the form LATITUDESxLONGITUDES. Example: --grid 32x64.")
    return int(match[1]), int(match[2])


@dataclass(frozen=True)
class Grid:
    """Regular grid of cells, latitude ascending.

    Attributes:
        shape: (H, W), number of cells along latitude and longitude.
        lat: southern and northern edge [degrees north].
        lon: western and eastern edge [degrees east].
    """

    shape: tuple[int, int]
    lat: tuple[float, float]
    lon: tuple[float, float]

    def __post_init__(self) -> None:
        height, width = self.shape
        if min(self.shape) < MIN_CELLS:
            raise ValueError(f"--grid {height}x{width} is too small. Use at least {MIN_CELLS}x{MIN_CELLS}.")
        for name, (low, high), (lowest, highest) in (
            ("lat", self.lat, LATITUDES),
            ("lon", self.lon, LONGITUDES),
        ):
            if not lowest <= low < high <= highest:
                raise ValueError(
                    f"--{name} {low:g} {high:g} is not a valid range. Give the lower edge first, both from "
                    f"{lowest:g} to {highest:g} degrees."
                )

    @cached_property
    def lat_edges(self) -> NDArray[np.float64]:
        """(H + 1,) [degrees north]."""
        return np.linspace(*self.lat, self.shape[0] + 1)

    @cached_property
    def lon_edges(self) -> NDArray[np.float64]:
        """(W + 1,) [degrees east]."""
        return np.linspace(*self.lon, self.shape[1] + 1)

    @cached_property
    def lat_centres(self) -> NDArray[np.float64]:
        """(H,) [degrees north]."""
        return (self.lat_edges[1:] + self.lat_edges[:-1]) / 2

    @cached_property
    def lon_centres(self) -> NDArray[np.float64]:
        """(W,) [degrees east]."""
        return (self.lon_edges[1:] + self.lon_edges[:-1]) / 2

    @cached_property
    def lat2d(self) -> NDArray[np.float64]:
        """(H, W) latitude of the cell centres [degrees north]."""
        return np.repeat(self.lat_centres[:, None], self.shape[1], axis=1)

    @cached_property
    def lon2d(self) -> NDArray[np.float64]:
        """(H, W) longitude of the cell centres [degrees east]."""
        return np.repeat(self.lon_centres[None, :], self.shape[0], axis=0)

    @property
    def _lon_step(self) -> float:
        """Width of a cell [rad]."""
        return float(np.radians(self.lon_edges[1] - self.lon_edges[0]))

    @cached_property
    def dx(self) -> NDArray[np.float64]:
        """(H, 1) west-east extent of a cell at its centre [m]."""
        return EARTH_RADIUS * self._lon_step * np.cos(np.radians(self.lat_centres))[:, None]

    @cached_property
    def dy(self) -> float:
        """South-north extent of a cell [m]."""
        return float(EARTH_RADIUS * np.radians(self.lat_edges[1] - self.lat_edges[0]))

    @cached_property
    def area(self) -> NDArray[np.float64]:
        """(H, 1) area of a cell on the sphere [m2]."""
        return EARTH_RADIUS**2 * self._lon_step * np.diff(np.sin(np.radians(self.lat_edges)))[:, None]

    @cached_property
    def south_edges(self) -> NDArray[np.float64]:
        """(H + 1, 1) length of the faces between a cell and its southern neighbour [m]."""
        return EARTH_RADIUS * self._lon_step * np.cos(np.radians(self.lat_edges))[:, None]
