"""Gather and scatter by a permutation of the tokens, one sample at a time.

Shapes: B batch, N tokens, D width.
"""

import torch
from torch import Tensor

from aqtopo_kernels.order import invert_order


def wind_gather_reference(x: Tensor, order: Tensor, add: Tensor | None = None) -> Tensor:
    """Row r of the result is x[order[r]] (+ add[r]); x (B, N, D), order (B, N), add (B or 1, N, D)."""
    y_BND = torch.stack([x_ND[rows_N.long()] for x_ND, rows_N in zip(x, order, strict=True)])
    return y_BND if add is None else y_BND + add


def wind_scatter_reference(y: Tensor, order: Tensor) -> Tensor:
    """The inverse of the gather: row order[r] of the result is y[r]."""
    return wind_gather_reference(y, invert_order(order))
