"""What lies between two tokens: the ridge that air has to climb, and whether the wind comes along.

Dense N x N matrices, for experiments on small maps only: the elevation attention of `aqtopo_kernels` takes
its bias from one number a token, and these do not reduce to that. Cast to bfloat16 with the model, they keep
three digits.

Shapes: B batch, N tokens, S points along a line.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

POINTS_A_PATCH = 2
"""Points at which the ground between two patches is looked up, a patch of distance."""

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


def upwindness(wind_B2N: Tensor, ways_2NN: Tensor) -> Tensor:
    """How much each token lies upwind of another: the cosine between the wind at i and the way from j to i.

    Args:
        wind_B2N: eastward and northward wind of each patch [m s-1].
        ways_2NN: from `unit_ways`.

    Returns:
        (B, N, N) in [-1, 1], scaled down where the wind at i is below `FRESH_WIND`.
    """
    wind_B2N = wind_B2N.to(ways_2NN.dtype)
    speed_BN = wind_B2N.norm(dim=1)
    return torch.einsum("bci,cij->bij", wind_B2N / torch.clamp(speed_BN, min=FRESH_WIND)[:, None], ways_2NN)
