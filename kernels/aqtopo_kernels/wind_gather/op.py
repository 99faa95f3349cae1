"""The gather into wind order and its inverse that callers use: check the arguments, then compute.

What computes today is the reference on every device. A fused path belongs in this module's dispatch and must
agree with the reference bit for bit: nothing here rounds but the one addition.

Shapes: B batch, N tokens, D width.
"""

import torch
from torch import Tensor

from aqtopo_kernels.wind_gather.reference import wind_gather_reference, wind_scatter_reference


def wind_gather(x: Tensor, order: Tensor, add: Tensor | None = None) -> Tensor:
    """Puts tokens into an order and adds what is in it already (a residual, a positional embedding).

    Args:
        x: tokens (B, N, D) in storage order.
        order: (B, N), int32 or int64, each row a permutation of 0..N-1 (not checked: it would wait for the
            device); row r of the result is x[order[r]] + add[r].
        add: (B, N, D) or (1, N, D), in the new order.

    Returns:
        (B, N, D); the dtype of x, promoted by that of `add`.

    Raises:
        ValueError: shapes, dtypes or devices do not fit; names them.
    """
    _check("wind_gather", x, order)
    if add is not None:
        _check_add(x, add)
    return wind_gather_reference(x, order, add)


def wind_scatter(y: Tensor, order: Tensor) -> Tensor:
    """Puts ordered tokens back: row order[r] of the result is y[r], so it undoes `wind_gather`.

    Args:
        y: tokens (B, N, D) in the order.
        order: as for `wind_gather`.

    Returns:
        (B, N, D), in storage order.

    Raises:
        ValueError: shapes, dtypes or devices do not fit; names them.
    """
    _check("wind_scatter", y, order)
    return wind_scatter_reference(y, order)


def _check(op: str, x: Tensor, order: Tensor) -> None:
    if x.ndim != 3 or order.shape != x.shape[:2]:
        raise ValueError(
            f"{op} needs tokens (B, N, D) and an order (B, N), but got {tuple(x.shape)} and "
            f"{tuple(order.shape)}."
        )
    if order.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{op} needs the order in int32 or int64, but got {order.dtype}.")
    if order.device != x.device:
        raise ValueError(
            f"{op} needs tokens and order on one device, but they are on {x.device}, {order.device}."
        )


def _check_add(x: Tensor, add: Tensor) -> None:
    if add.shape not in (x.shape, (1, *x.shape[1:])):
        raise ValueError(
            f"wind_gather adds a tensor of the tokens' shape {tuple(x.shape)}, or the same with batch 1, but "
            f"got {tuple(add.shape)}."
        )
    if add.device != x.device:
        raise ValueError(f"wind_gather adds a tensor on the tokens' device {x.device}, but got {add.device}.")
