"""Regridding from a curvilinear to a regular grid; the weights are computed once per command.

A target cell takes the mean of k x k points inside it, each interpolated bilinearly between the four source
cells around it; k grows with the ratio of grid spacings, so that no source cell is skipped. The operation is
one sparse matrix, because it is linear. pyresample is not used: it treats a curvilinear grid as scattered
points and searches the corners among the nearest points.

Shapes: n x m source grid, H x W target grid.
"""

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.spatial import cKDTree

from aqtopo.data.grid import EARTH_RADIUS, Grid

Values = NDArray[np.float64]

MIN_VALID_SHARE = 0.5
"""Minimum share of a target cell's weight on source cells with a value; below it the cell is NaN."""

_NEAREST = 4
_NEWTON_STEPS = 8
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class Regridder:
    """Sparse weights from a source grid of n x m cells to a target grid of H x W.

    Attributes:
        weights: (H W, n m) csr_array; rows of cells inside the source grid sum to 1.
        shape: (H, W).
    """

    weights: Any
    shape: tuple[int, int]

    @classmethod
    def between(cls, lat: Values, lon: Values, target: Grid) -> "Regridder":
        """Compute the weights from cell centres `lat`, `lon` (n, m) [degrees] to a regular grid.

        Raises:
            ValueError: the source positions are not (n, m), or the grids do not overlap.
        """
        if lat.ndim != 2 or lat.shape != lon.shape or min(lat.shape) < 2:
            raise ValueError(f"The source grid has lat {lat.shape}, lon {lon.shape}. Give two (n, m) arrays.")
        points = points_per_side(lat, lon, target)
        offsets = (np.arange(points) + 0.5) / points
        rows, columns, shares = [], [], []
        for down, across in product(offsets, offsets):
            point_lat, point_lon = np.meshgrid(
                target.lat_edges[:-1] + down * np.diff(target.lat_edges),
                target.lon_edges[:-1] + across * np.diff(target.lon_edges),
                indexing="ij",
            )
            found, corners, weights = locate(lat, lon, point_lat.ravel(), point_lon.ravel())
            rows.append(np.repeat(found, 4))
            columns.append(corners.ravel())
            shares.append(weights.ravel() / points**2)
        size = (target.shape[0] * target.shape[1], lat.size)
        entries = (np.concatenate(shares), (np.concatenate(rows), np.concatenate(columns)))
        matrix: Any = csr_array(entries, shape=size)
        matrix.sum_duplicates()
        if not matrix.nnz:
            raise ValueError(
                f"The target grid (latitude {target.lat}, longitude {target.lon}) lies outside the source "
                f"grid (latitude {lat.min():g} to {lat.max():g}, longitude {lon.min():g} to {lon.max():g})."
            )
        return cls(matrix, target.shape)

    @property
    def covered(self) -> NDArray[np.bool_]:
        """Return the target cells (H, W) of which at least `MIN_VALID_SHARE` lies inside the source grid."""
        shares = np.asarray(self.weights.sum(axis=1)).reshape(self.shape)
        return shares >= MIN_VALID_SHARE - _ROUNDING

    def __call__(self, values: NDArray[np.floating]) -> NDArray[np.float32]:
        """Regrid (..., n, m) to (..., H, W) float32.

        Weights of finite source cells are rescaled to sum to 1 if they hold `MIN_VALID_SHARE` of a target
        cell; otherwise the cell is NaN.
        """
        flat = values.reshape(-1, self.weights.shape[1]).T.astype(np.float64)
        finite = np.isfinite(flat)
        total = self.weights @ np.where(finite, flat, 0.0)
        share = self.weights @ finite.astype(np.float64)
        known = share >= MIN_VALID_SHARE - _ROUNDING
        mean = np.divide(total, share, out=np.full_like(total, np.nan), where=known)
        regridded: NDArray[np.float32] = mean.T.reshape(*values.shape[:-2], *self.shape).astype(np.float32)
        return regridded


def points_per_side(lat: Values, lon: Values, target: Grid) -> int:
    """Return k, the number of source cells along the side of the largest target cell, rounded up."""
    points = _on_sphere(lat, lon).reshape(*lat.shape, 3)
    spacing = [np.median(np.linalg.norm(np.diff(points, axis=axis), axis=-1)) for axis in (0, 1)]
    return max(1, int(np.ceil(max(target.dy, float(target.dx.max())) / (EARTH_RADIUS * min(spacing)) - 0.1)))


def locate(
    lat: Values, lon: Values, point_lat: Values, point_lon: Values
) -> tuple[NDArray[np.int64], NDArray[np.int64], Values]:
    """Return the four source cells around each of P points, and their bilinear weights.

    Returns:
        Indices (F,) of the points inside the source grid; indices (F, 4) of their corners in the raveled
        source grid; non-negative weights (F, 4), rows of sum 1.
    """
    neighbours: Any = cKDTree(_on_sphere(lat, lon)).query(
        _on_sphere(point_lat, point_lon), k=min(_NEAREST, lat.size)
    )
    nearest: NDArray[np.int64] = np.asarray(neighbours[1])
    corners = np.zeros((point_lat.size, 4), dtype=np.int64)
    weights = np.full((point_lat.size, 4), np.nan)
    # The cell that contains a point touches its nearest node; on a skewed grid, one of the next nearest.
    for choice, (up, left) in product(range(nearest.shape[1]), product((0, 1), (0, 1))):
        pending = np.flatnonzero(np.isnan(weights[:, 0]))
        row, column = np.divmod(nearest[pending, choice], lat.shape[1])
        row, column = row - up, column - left
        inside = (row >= 0) & (column >= 0) & (row < lat.shape[0] - 1) & (column < lat.shape[1] - 1)
        pending, row, column = pending[inside], row[inside], column[inside]
        first = row * lat.shape[1] + column
        four = first[:, None] + np.array([0, 1, lat.shape[1], lat.shape[1] + 1])
        east = (lon.ravel()[four] - point_lon[pending, None] + 180.0) % 360.0 - 180.0
        north = lat.ravel()[four] - point_lat[pending, None]
        position = _position_of_origin(np.stack([east, north], axis=-1))
        hit = ((position >= -_ROUNDING) & (position <= 1 + _ROUNDING)).all(axis=1)
        s, t = position[hit].clip(0.0, 1.0).T
        corners[pending[hit]] = four[hit]
        weights[pending[hit]] = np.stack([(1 - s) * (1 - t), s * (1 - t), (1 - s) * t, s * t], axis=1)
    found = np.flatnonzero(~np.isnan(weights[:, 0]))
    return found, corners[found], weights[found]


def _position_of_origin(corners: Values) -> Values:
    """Return the bilinear coordinates (P, 2) of the origin in quadrilaterals (P, 4, 2); 0 to 1 inside.

    Newton's method on the bilinear map, which converges in a few steps for cells close to parallelograms.
    """
    start, right, up, far = corners.transpose(1, 0, 2)
    along, across, skew = right - start, up - start, far - right - up + start
    s, t = np.full((2, len(corners)), 0.5)
    with np.errstate(divide="ignore", invalid="ignore"):
        for _ in range(_NEWTON_STEPS):
            value = start + along * s[:, None] + across * t[:, None] + skew * (s * t)[:, None]
            by_s, by_t = along + skew * t[:, None], across + skew * s[:, None]
            determinant = by_s[:, 0] * by_t[:, 1] - by_s[:, 1] * by_t[:, 0]
            s = s - (value[:, 0] * by_t[:, 1] - value[:, 1] * by_t[:, 0]) / determinant
            t = t - (by_s[:, 0] * value[:, 1] - by_s[:, 1] * value[:, 0]) / determinant
    return np.stack([s, t], axis=1)


def _on_sphere(lat: Values, lon: Values) -> Values:
    """Return the unit vectors (P, 3) of raveled positions [degrees]."""
    phi, theta = np.radians(lat.ravel()), np.radians(lon.ravel())
    return np.stack([np.cos(phi) * np.cos(theta), np.cos(phi) * np.sin(theta), np.sin(phi)], axis=1)
