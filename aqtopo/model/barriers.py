"""What lies between two tokens: distance, the ridge that air has to climb, and whether the wind comes along.

Dense N x N matrices, for experiments on small maps only: the elevation attention of `aqtopo_kernels` takes
its bias from one number a token, and these do not reduce to that. Cast to bfloat16 with the model, they keep
three digits.

Shapes: B batch, N tokens, S points along a line.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from aqtopo.model.terrain import Terrain

POINTS_A_PATCH = 2
"""Points at which the ground between two patches is looked up, a patch of distance."""

EARTH_RADIUS_KM = 6371.0

KM_A_DAY = 86.4
"""How far a wind of 1 m s-1 carries the air [km d-1]."""

FRESH_WIND = 5.0
"""Wind speed [m s-1] above which the direction counts in full."""


def ridge_rises_km(height_m: npt.NDArray[np.float32], patch_grid: tuple[int, int]) -> npt.NDArray[np.float32]:
    """How far air has to climb on the straight way from one patch to another [km].

    Args:
        height_m: (N,) mean height of each patch, raster order.
        patch_grid: rows and columns of patches.

    Returns:
        (N, N): [i, j] is the highest patch on the line from j to i, both included, less the height of j: for
        a query i that takes from the key j. Never negative; 0 on the diagonal.
    """
    heights = height_m.reshape(patch_grid).astype(np.float64)
    rows, columns = (axis.ravel() for axis in np.indices(patch_grid))
    steps = POINTS_A_PATCH * (max(patch_grid) - 1) + 1
    share = np.linspace(0.0, 1.0, max(steps, 2))
    highest = np.full((rows.size, rows.size), -np.inf)
    for part in share:  # a point of all lines at once; all of them at a time would be S times the memory
        row = np.rint(rows[None, :] + part * (rows[:, None] - rows[None, :])).astype(np.int64)
        column = np.rint(columns[None, :] + part * (columns[:, None] - columns[None, :])).astype(np.int64)
        np.maximum(highest, heights[row, column], out=highest)
    rises: npt.NDArray[np.float32] = ((highest - heights.ravel()[None, :]) / 1000.0).astype(np.float32)
    return rises


def squared_distances(terrain: Terrain, patch: int) -> npt.NDArray[np.float64]:
    """Square of the straight distance between the middles of any two patches, (N, N) [km2], raster order."""
    places_3N, _ = _places(terrain, patch)
    square_NN: npt.NDArray[np.float64] = np.square(places_3N[:, :, None] - places_3N[:, None, :]).sum(0)
    return square_NN


def ways_km(terrain: Terrain, patch: int) -> npt.NDArray[np.float32]:
    """How far air has to move from one patch to another.

    Returns:
        (2, N, N): eastward and northward from j to i at [:, i, j], as seen from i, in raster order [km].
    """
    places_3N, axes_23N = _places(terrain, patch)
    way_3NN = places_3N[:, :, None] - places_3N[:, None, :]
    ways: npt.NDArray[np.float32] = np.einsum("aci,cij->aij", axes_23N, way_3NN).astype(np.float32)
    return ways


def _places(terrain: Terrain, patch: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(3, N) where patches are on the sphere [km], and (2, 3, N) unit vectors to the east and north there."""
    axes = (terrain.latitude, terrain.longitude)
    middles = (np.radians(axis.astype(np.float64)).reshape(-1, patch).mean(1) for axis in axes)
    latitude, longitude = (angle.ravel() for angle in np.meshgrid(*middles, indexing="ij"))
    zero, (sin, cos), (sin_x, cos_x) = (
        np.zeros_like(latitude),
        (np.sin(latitude), np.cos(latitude)),
        (np.sin(longitude), np.cos(longitude)),
    )
    places = EARTH_RADIUS_KM * np.stack([cos * cos_x, cos * sin_x, sin])
    east, north = np.stack([-sin_x, cos_x, zero]), np.stack([-sin * cos_x, -sin * sin_x, cos])
    return places, np.stack([east, north])


def drift(wind_B2YX: Tensor, ways_km_2NN: Tensor, patch: int) -> Tensor:
    """How well the wind at i carries what is at j to i: the way from j to i times the wind along it.

    Args:
        wind_B2YX: eastward and northward wind [m s-1].
        ways_km_2NN: from `ways_km`.
        patch: cells along each side of a patch.

    Returns:
        (B, N, N) [km2 d-1].
    """
    wind_B2N = _patch_means(wind_B2YX, patch, ways_km_2NN.dtype)
    return _along(KM_A_DAY * wind_B2N, ways_km_2NN)


def unit_ways(patch_grid: tuple[int, int], *, latitude_ascending: bool) -> npt.NDArray[np.float32]:
    """The direction in which air would have to move from one patch to another, in cells.

    Returns:
        (2, N, N): east and north components of the unit vector from j to i at [:, i, j]; 0 on the diagonal.
    """
    rows, columns = (axis.ravel().astype(np.float64) for axis in np.indices(patch_grid))
    north = rows if latitude_ascending else -rows
    way = np.stack([columns[:, None] - columns[None, :], north[:, None] - north[None, :]])
    length = np.hypot(*way)
    units: npt.NDArray[np.float32] = (way / np.maximum(length, 1e-9)).astype(np.float32)
    return units


def upwindness(wind_B2YX: Tensor, ways_2NN: Tensor, patch: int) -> Tensor:
    """How much each token lies upwind of another: the cosine between the wind at i and the way from j to i.

    Args:
        wind_B2YX: eastward and northward wind [m s-1].
        ways_2NN: from `unit_ways`.
        patch: cells along each side of a patch.

    Returns:
        (B, N, N) in [-1, 1], scaled down where the wind at i is below `FRESH_WIND`.
    """
    wind_B2N = _patch_means(wind_B2YX, patch, ways_2NN.dtype)
    speed_BN = wind_B2N.norm(dim=1)
    return _along(wind_B2N / torch.clamp(speed_BN, min=FRESH_WIND)[:, None], ways_2NN)


def _patch_means(wind_B2YX: Tensor, patch: int, dtype: torch.dtype) -> Tensor:
    """(B, 2, N) the mean wind of each patch."""
    return functional.avg_pool2d(wind_B2YX.to(dtype), patch).flatten(2)


def _along(vectors_B2N: Tensor, ways_2NN: Tensor) -> Tensor:
    """(B, N, N) each token's vector times the way to it from every other."""
    return torch.einsum("bci,cij->bij", vectors_B2N, ways_2NN)
