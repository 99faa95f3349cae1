"""Scan order of the tokens of a wind field, computed on the device.

Plain PyTorch on every device: a few small kernels without synchronisation. The result is integer, so there is
no gradient.

Shapes: B batch, Y, X the grid's cells, R regions, S sectors, P patches of a region, N = R P tokens.
"""

import math

import torch
from torch import Tensor


def wind_order(
    u: Tensor, v: Tensor, table: Tensor, *, regions: tuple[int, int], patch: int, calm_below: float
) -> Tensor:
    """Return the raster index of the token at each scan position.

    The grid is divided into regions. Each region's vector-mean wind selects the row of the table with the
    order of the region's patches. Regions stay in raster order. There is no gradient.

    Shapes: B batch, Y, X the grid's cells, S sectors, P patches of a region, N tokens.

    Args:
        u: eastward wind [m/s], (B, Y, X).
        v: northward wind [m/s], (B, Y, X).
        table: (S + 1, P), int64, raster indices within a region in scan order. Row s is for wind that blows
            towards the angle 2 pi s / S from east to north; the last row is for calm.
        regions: regions along (Y, X).
        patch: cells along each side of a patch.
        calm_below: mean wind speed [m/s] below which the last row is used; it is also used for NaN.

    Returns:
        (B, N), int64; each row is a permutation.

    Raises:
        ValueError: the grid does not match regions, patch and table, or devices differ.
    """
    region = _region_patches(u, v, table, regions, patch)
    sector_BR = wind_sector(u, v, regions=regions, sectors=len(table) - 1, calm_below=calm_below)
    columns = regions[1] * region[1]
    row_R1 = torch.arange(regions[0], device=u.device).repeat_interleave(regions[1])[:, None] * region[0]
    column_R1 = torch.arange(regions[1], device=u.device).repeat(regions[0])[:, None] * region[1]
    place_BRP = table[sector_BR]
    # The same patches as indices of the whole patch grid.
    row_BRP, column_BRP = place_BRP // region[1] + row_R1, place_BRP % region[1] + column_R1
    return (row_BRP * columns + column_BRP).flatten(1)


def _region_patches(
    u: Tensor, v: Tensor, table: Tensor, regions: tuple[int, int], patch: int
) -> tuple[int, int]:
    """Return the number of patches of a region along (Y, X)."""
    _check_wind("wind_order", u, v)
    rows, columns = u.shape[1] // (regions[0] * patch), u.shape[2] // (regions[1] * patch)
    if (rows * regions[0] * patch, columns * regions[1] * patch) != u.shape[1:]:
        raise ValueError(
            f"wind_order cannot divide a grid of {u.shape[1]} x {u.shape[2]} cells into {regions[0]} x "
            f"{regions[1]} regions of patches of {patch} x {patch}; choose numbers that divide it."
        )
    if table.ndim != 2 or table.shape[1] != rows * columns:
        raise ValueError(
            f"wind_order needs a table (S + 1, {rows * columns}) for regions of {rows} x {columns} patches, "
            f"but got {tuple(table.shape)}."
        )
    if table.dtype != torch.int64 or table.device != u.device:
        raise ValueError(
            f"wind_order needs a table in int64 on the wind's device {u.device}, but got {table.dtype} on "
            f"{table.device}."
        )
    return rows, columns


def _check_wind(operation: str, u: Tensor, v: Tensor) -> None:
    if u.ndim != 3 or v.shape != u.shape or v.device != u.device:
        raise ValueError(
            f"{operation} needs u and v of one shape (B, Y, X) on one device, but got {tuple(u.shape)} on "
            f"{u.device} and {tuple(v.shape)} on {v.device}."
        )


def wind_sector(u: Tensor, v: Tensor, *, regions: tuple[int, int], sectors: int, calm_below: float) -> Tensor:
    """Return the sector of each region's vector-mean wind.

    Args:
        u: eastward wind [m/s], (B, Y, X).
        v: northward wind [m/s], (B, Y, X).
        regions: regions along (Y, X), R in all.
        sectors: S, the number of wind directions.
        calm_below: mean wind speed [m/s] below which a region is calm.

    Returns:
        (B, R), int64: s for wind that blows towards the angle 2 pi s / S from east to north; S if it is calm
        or NaN.

    Raises:
        ValueError: u and v differ, or the regions do not divide their grid.
    """
    _check_wind("wind_sector", u, v)
    B, Y, X = u.shape
    if Y % regions[0] or X % regions[1]:
        raise ValueError(
            f"wind_sector cannot divide a grid of {Y} x {X} cells into {regions[0]} x {regions[1]} regions; "
            "choose numbers that divide it."
        )
    wind_2BYX = torch.stack([u, v]).to(torch.promote_types(u.dtype, torch.float32))
    tiles = wind_2BYX.view(2, B, regions[0], Y // regions[0], regions[1], X // regions[1])
    u_BR, v_BR = tiles.mean((3, 5)).flatten(2)
    nearest_BR = torch.round(torch.atan2(v_BR, u_BR) * (sectors / (2.0 * math.pi)))
    moving_BR = torch.hypot(u_BR, v_BR) >= calm_below
    return torch.where(moving_BR, nearest_BR.long() % sectors, sectors)
