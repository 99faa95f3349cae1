"""Wind order: in each region, tokens are scanned from upwind to downwind.

The model tabulates the order of each wind sector once, when it is built. A sample's order is looked up on the
sample's device, without a transfer to the host.

Shapes: B batch, R regions, S sectors, P patches of a region, N = R P tokens; Y, X rows and columns of the
grid.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from aqtopo_kernels import wind_order

IntArray = npt.NDArray[np.int64]

_DECIMALS = 6
"""Decimals of the rounded projections: rounding errors of 1e-16 must not change the order of ties."""


def sector_order_table(
    region: tuple[int, int], sectors: int = 16, *, latitude_ascending: bool = True
) -> IntArray:
    """Return the raster indices of a region's patches for each sector, most upwind first.

    Sector s is wind that blows *towards* the angle theta = 2 pi s / sectors, from east to north. Patches are
    sorted by x cos(theta) + y sin(theta), with x east and y north in cells, and ties by raster index.

    Args:
        region: patches of a region along (latitude, longitude).
        sectors: S, number of wind directions.
        latitude_ascending: True if row 0 is the southernmost.

    Returns:
        (S + 1, P): the last row is raster order, for calm.
    """
    rows, columns = region
    y, x = np.meshgrid(np.arange(rows, dtype=np.float64), np.arange(columns, dtype=np.float64), indexing="ij")
    north = y if latitude_ascending else -y
    theta = 2.0 * np.pi * np.arange(sectors, dtype=np.float64)[:, None] / sectors
    projection_SP = np.round(np.cos(theta) * x.ravel() + np.sin(theta) * north.ravel(), _DECIMALS)
    order_SP = np.argsort(projection_SP, axis=1, kind="stable")
    return np.concatenate([order_SP, np.arange(rows * columns)[None]]).astype(np.int64)


class WindOrder(nn.Module):
    """Maps a wind field to the scan order of its tokens.

    Regions stay in raster order; the patches within a region are sorted from upwind to downwind.

    Args:
        patch: cells along each side of a patch.
        patch_grid: patches along (latitude, longitude).
        regions: regions along (latitude, longitude).
        sectors: number of wind directions.
        calm_below: mean wind speed [m s-1] below which a region keeps raster order.
        latitude_ascending: True if row 0 is the southernmost.

    Raises:
        ValueError: the patch grid is not a multiple of the regions.
    """

    table: Tensor  # (S + 1, P) raster index within the region

    def __init__(
        self,
        patch: int,
        patch_grid: tuple[int, int],
        regions: tuple[int, int],
        *,
        sectors: int,
        calm_below: float,
        latitude_ascending: bool,
    ) -> None:
        super().__init__()
        if patch_grid[0] % regions[0] or patch_grid[1] % regions[1]:
            raise ValueError(
                f"A grid of {patch_grid[0]} x {patch_grid[1]} patches cannot be divided into {regions[0]} x "
                f"{regions[1]} regions; choose model.regions that divide the grid."
            )
        self.patch, self.patch_grid = patch, patch_grid
        self.regions, self.calm_below = regions, calm_below
        region = patch_grid[0] // regions[0], patch_grid[1] // regions[1]
        table = sector_order_table(region, sectors, latitude_ascending=latitude_ascending)
        self.register_buffer("table", torch.as_tensor(table), persistent=False)

    def forward(self, wind_B2YX: Tensor) -> Tensor:
        """Return the raster index (B, N) int64 of the token at each scan position; wind in [m s-1]."""
        u, v = wind_B2YX.unbind(1)
        return wind_order(
            u, v, self.table, regions=self.regions, patch=self.patch, calm_below=self.calm_below
        )

    def calm_order(self) -> Tensor:
        """Return the order of a calm sample, (N,): regions, and the patches of each, in raster order."""
        cells = self.patch_grid[0] * self.patch, self.patch_grid[1] * self.patch
        no_wind_B2YX = torch.full((1, 2, *cells), torch.nan, device=self.table.device)
        return self.forward(no_wind_B2YX)[0]
