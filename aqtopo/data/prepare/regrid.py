"""From a curvilinear grid to a regular one: weights computed once, applied to every hour.

A target cell takes the mean of k x k points inside it, each interpolated bilinearly between the four source
cells around it; k grows with the ratio of the grids' spacings, so that no source cell is skipped. All of it
is linear, hence one sparse matrix. pyresample, which is at hand on PyPI, takes a curvilinear grid for a cloud
of points and looks for corners among the nearest; here the cells' neighbours are known.

Shapes: n x m source grid, H x W target grid.
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, load_npz, save_npz
from scipy.spatial import cKDTree

from aqtopo.data.grid import EARTH_RADIUS, Grid

Values = NDArray[np.float64]

LEAST_SHARE = 0.5
"""Share of a target cell's weight that must lie on source cells with a value; below it the cell has none."""

_NEAREST = 4
_NEWTON_STEPS = 8
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class Regridder:
    """Sparse weights from a source grid of n x m cells to a target grid of H x W.

    Attributes:
        weights: (H W, n m) csr_array; the rows of cells inside the source grid add up to 1.
        shape: (H, W).
    """

    weights: Any
    shape: tuple[int, int]

    @classmethod
    def between(cls, lat: Values, lon: Values, target: Grid) -> "Regridder":
        """Weights from cell centres `lat`, `lon` (n, m) [degrees] to the cells of a regular grid.

        Raises:
            ValueError: the source grid is no grid, or the target lies outside it altogether.
        """
        if lat.ndim != 2 or lat.shape != lon.shape or min(lat.shape) < 2:
            raise ValueError(f"the source grid has lat {lat.shape}, lon {lon.shape}: give two (n, m) arrays")
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
                f"the target grid (latitude {target.lat}, longitude {target.lon}) lies outside the source "
                f"grid (latitude {lat.min():g} to {lat.max():g}, longitude {lon.min():g} to {lon.max():g})"
            )
        return cls(matrix, target.shape)

    @property
    def covered(self) -> NDArray[np.bool_]:
        """(H, W) the target cells of which at least `LEAST_SHARE` lies inside the source grid."""
        shares = np.asarray(self.weights.sum(axis=1)).reshape(self.shape)
        covered: NDArray[np.bool_] = shares >= LEAST_SHARE - _ROUNDING
        return covered

    def __call__(self, values: NDArray[np.floating]) -> NDArray[np.float32]:
        """(..., n, m) to (..., H, W) float32.

        A source cell without a finite value takes no part: the others' weights are scaled up, as long as they
        hold `LEAST_SHARE` of a target cell; otherwise that cell is NaN.
        """
        flat = values.reshape(-1, self.weights.shape[1]).T.astype(np.float64)
        finite = np.isfinite(flat)
        total = self.weights @ np.where(finite, flat, 0.0)
        share = self.weights @ finite.astype(np.float64)
        known = share >= LEAST_SHARE - _ROUNDING
        mean = np.divide(total, share, out=np.full_like(total, np.nan), where=known)
        regridded: NDArray[np.float32] = mean.T.reshape(*values.shape[:-2], *self.shape).astype(np.float32)
        return regridded

    def save(self, path: Path) -> None:
        """Keep the weights in a file, to be read by `load`."""
        save_npz(path, self.weights)

    @classmethod
    def load(cls, path: Path, shape: tuple[int, int]) -> "Regridder":
        """The weights that `save` kept, for a target of H x W cells."""
        weights: Any = csr_array(load_npz(path))
        assert weights.shape[0] == shape[0] * shape[1]
        return cls(weights, shape)


def points_per_side(lat: Values, lon: Values, target: Grid) -> int:
    """k: how many source cells, rounded up, lie along the side of the target's largest cell."""
    points = _on_sphere(lat, lon).reshape(*lat.shape, 3)
    spacing = [np.median(np.linalg.norm(np.diff(points, axis=axis), axis=-1)) for axis in (0, 1)]
    return max(1, int(np.ceil(max(target.dy, float(target.dx.max())) / (EARTH_RADIUS * min(spacing)) - 0.1)))


def locate(
    lat: Values, lon: Values, point_lat: Values, point_lon: Values
) -> tuple[NDArray[np.int64], NDArray[np.int64], Values]:
    """The four source cells around each of P points, and their bilinear weights.

    Returns:
        The F points that lie inside the source grid, (F,); their corners as indices into the raveled source
        grid, (F, 4); the weights, (F, 4), not negative, each row of sum 1.
    """
    neighbours: Any = cKDTree(_on_sphere(lat, lon)).query(
        _on_sphere(point_lat, point_lon), k=min(_NEAREST, lat.size)
    )
    nearest: NDArray[np.int64] = np.asarray(neighbours[1])
    corners = np.zeros((point_lat.size, 4), dtype=np.int64)
    weights = np.full((point_lat.size, 4), np.nan)
    # The cell that holds a point touches its nearest node, or where the grid is skewed the next nearest.
    for choice, (up, left) in product(range(nearest.shape[1]), product((0, 1), (0, 1))):
        open_ = np.flatnonzero(np.isnan(weights[:, 0]))
        row, column = np.divmod(nearest[open_, choice], lat.shape[1])
        row, column = row - up, column - left
        inside = (row >= 0) & (column >= 0) & (row < lat.shape[0] - 1) & (column < lat.shape[1] - 1)
        open_, row, column = open_[inside], row[inside], column[inside]
        first = row * lat.shape[1] + column
        four = first[:, None] + np.array([0, 1, lat.shape[1], lat.shape[1] + 1])
        east = (lon.ravel()[four] - point_lon[open_, None] + 180.0) % 360.0 - 180.0
        north = lat.ravel()[four] - point_lat[open_, None]
        place = _place_of_origin(np.stack([east, north], axis=-1))
        hit = ((place >= -_ROUNDING) & (place <= 1 + _ROUNDING)).all(axis=1)
        s, t = place[hit].clip(0.0, 1.0).T
        corners[open_[hit]] = four[hit]
        weights[open_[hit]] = np.stack([(1 - s) * (1 - t), s * (1 - t), (1 - s) * t, s * t], axis=1)
    found = np.flatnonzero(~np.isnan(weights[:, 0]))
    return found, corners[found], weights[found]


def _place_of_origin(corners: Values) -> Values:
    """(P, 2) where in quadrilaterals (P, 4, 2) the origin lies, 0 to 1 along both sides if inside.

    Newton's method on the bilinear map; for cells that are nearly parallelograms it converges in a few steps.
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
    """(P, 3) unit vectors of raveled positions [degrees]."""
    phi, theta = np.radians(lat.ravel()), np.radians(lon.ravel())
    return np.stack([np.cos(phi) * np.cos(theta), np.cos(phi) * np.sin(theta), np.sin(phi)], axis=1)
