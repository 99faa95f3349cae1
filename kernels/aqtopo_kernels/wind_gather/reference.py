"""Reference implementation of the wind gather and its inverse, one sample at a time.

Shapes: B batch, N tokens, D width.
"""

import torch
from torch import Tensor

from aqtopo_kernels.order import invert_order


def wind_gather_reference(x: Tensor, order: Tensor, add: Tensor | None = None) -> Tensor:
    """Return x[order[r]] (+ add[r]) in row r; x (B, N, D), order (B, N), add (B or 1, N, D)."""
    y_BND = torch.stack([x_ND[rows_N.long()] for x_ND, rows_N in zip(x, order, strict=True)])
    return y_BND if add is None else y_BND + add


def wind_scatter_reference(y: Tensor, order: Tensor) -> Tensor:
    """Return y[r] in row order[r]: the inverse of the gather."""
    return wind_gather_reference(y, invert_order(order))
