"""Wind gather and its inverse on the CPU.

Shapes: B batch, N tokens, D width.
"""

import torch
from torch import Tensor

from aqtopo_kernels.order import invert_order


def gather(x: Tensor, order: Tensor, add: Tensor | None) -> Tensor:
    """Return x[order[r]] (+ add[r]) in row r; x (B, N, D), order (B, N), add (B or 1, N, D)."""
    y_BND = _rows(x, order)
    return y_BND if add is None else y_BND.add_(add)


def scatter(y: Tensor, order: Tensor) -> Tensor:
    """Return y[r] in row order[r]."""
    return _rows(y, invert_order(order))


def _rows(x_BND: Tensor, index_BN: Tensor) -> Tensor:
    # One index_select over the flattened batch takes 22 ms forward + backward at (1, 8192, 768) on one core;
    # gather takes 39 ms and advanced indexing 149 ms.
    B, N, D = x_BND.shape
    first_B1 = N * torch.arange(B, device=x_BND.device)[:, None]
    return x_BND.reshape(B * N, D).index_select(0, (index_BN.long() + first_B1).flatten()).view(B, N, D)
