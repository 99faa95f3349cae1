"""Elevation, relief, land fraction and ridges on a grid, from the global altitude map in pvlib.

The map (BSD-3-Clause; Mapzen terrain tiles from SRTM, GMTED2010, ETOPO1 and others) has 2160 x 4320 cells of
5 arc minutes as uint8, north and west first; metres = 28 n - 450, and 255 means no data: sea.
"""

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aqtopo.data.grid import Array, Grid

CELLS_PER_DEGREE = 12
METRES_PER_COUNT, LOWEST_METRES, NO_DATA = 28.0, -450.0, 255


@dataclass(frozen=True)
class Topography:
    """Terrain on a grid.

    Attributes:
        elevation: (H, W) mean elevation [m]; sea is 0 m.
        relief: (H, W) standard deviation of the elevation within the cell [m].
        land: (H, W) land fraction, 0-1.
        ridge_x: (H, W - 1) height of the ridge between a cell and its eastern neighbour [m]: the highest
            point on the way between the centres, averaged over parallel lines to include passes.
        ridge_y: (H - 1, W) same, towards the northern neighbour [m].
    """

    elevation: Array
    relief: Array
    land: Array
    ridge_x: Array
    ridge_y: Array

    @property
    def mask(self) -> Array:
        """(H, W) 1 where the land fraction is at least one half, else 0."""
        return (self.land >= 0.5).astype(np.float32)

    def flattened(self) -> "Topography":
        """Return the topography with the same coastlines and an elevation of 0 m."""
        level = np.zeros_like(self.elevation)
        return Topography(level, level, self.land, level[:, 1:], level[1:])


def load_topography(grid: Grid) -> Topography:
    """Average the altitude map over the cells of a grid.

    Raises:
        ValueError: pvlib's map is missing.
    """
    rows, lat_edges = _native_range(grid.lat, origin=-90.0)
    columns, lon_edges = _native_range(grid.lon, origin=-180.0)
    counts = _altitude_counts()[rows, columns]
    land = (counts != NO_DATA).astype(np.float64)
    height = np.where(land > 0, METRES_PER_COUNT * counts + LOWEST_METRES, 0.0)

    by_row = overlap(grid.lat_edges, lat_edges)
    by_column = overlap(grid.lon_edges, lon_edges)
    mean = by_row @ height @ by_column.T
    variance = by_row @ height**2 @ by_column.T - mean**2
    centre_rows = ((grid.lat_centres - lat_edges[0]) * CELLS_PER_DEGREE).astype(np.int64)
    centre_columns = ((grid.lon_centres - lon_edges[0]) * CELLS_PER_DEGREE).astype(np.int64)
    ridge_x = by_row @ np.maximum.reduceat(height, centre_columns, axis=1)[:, :-1]
    ridge_y = np.maximum.reduceat(height, centre_rows, axis=0)[:-1] @ by_column.T
    relief = np.sqrt(np.maximum(variance, 0.0))
    fields = (mean, relief, by_row @ land @ by_column.T, ridge_x, ridge_y)
    return Topography(*(field.astype(np.float32) for field in fields))


@cache
def _altitude_counts() -> NDArray[np.uint8]:
    """Return the map (2160, 4320) as stored, with latitude ascending."""
    import h5py

    # pvlib is located but not imported: the import takes a second.
    spec = find_spec("pvlib")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "data" / "Altitude.h5"
    if not path.is_file():
        raise ValueError(
            f"pvlib's altitude map {path} is missing. Run `pip install --force-reinstall pvlib`."
        )
    with h5py.File(path, "r") as file:
        counts: NDArray[np.uint8] = file["Altitude"][:][::-1]
    return counts


def _native_range(bounds: tuple[float, float], origin: float) -> tuple[slice, NDArray[np.float64]]:
    """Return the map's cells that overlap the bounds [degrees], and their edges (n + 1,) [degrees]."""
    first = int(np.floor((bounds[0] - origin) * CELLS_PER_DEGREE + 1e-9))
    last = int(np.ceil((bounds[1] - origin) * CELLS_PER_DEGREE - 1e-9))
    return slice(first, last), origin + np.arange(first, last + 1) / CELLS_PER_DEGREE


def overlap(edges: NDArray[np.float64], native: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share (n, m) of each of n cells that each of m native cells covers; rows sum to 1."""
    low = np.maximum(edges[:-1, None], native[None, :-1])
    high = np.minimum(edges[1:, None], native[None, 1:])
    shared = np.maximum(high - low, 0.0)
    shares: NDArray[np.float64] = shared / shared.sum(axis=1, keepdims=True)
    return shares
