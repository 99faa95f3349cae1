"""Wind gather operator and its inverse: check the arguments, then run the device's implementation.

The PyTorch operators `aqtopo_kernels::wind_gather` and `aqtopo_kernels::wind_scatter` are each other's
gradient. Every implementation returns the same bits as the reference: only the addition rounds.

Shapes: B batch, N tokens, D width.
"""

from typing import Any

import torch
from torch import Tensor

from aqtopo_kernels.backend import current_device, implementation
from aqtopo_kernels.order import check_order


def wind_gather(x: Tensor, order: Tensor, add: Tensor | None = None) -> Tensor:
    """Reorder tokens, and add a tensor that is already in that order (a residual, a position embedding).

    Shapes: B batch, N tokens, D width.

    Args:
        x: tokens (B, N, D) in storage order.
        order: (B, N), int32 or int64, each row a permutation of 0..N-1 (checked only with
            AQTOPO_KERNELS_DEBUG=1, because it synchronises with the device); row r of the result is
            x[order[r]] + add[r].
        add: (B, N, D) or (1, N, D), in the new order.

    Returns:
        (B, N, D); the dtype of x, promoted by that of `add`.

    Raises:
        ValueError: shapes, dtypes or devices do not match.
    """
    _check("wind_gather", x, order)
    if add is not None:
        _check_add(x, add)
        dtype = torch.promote_types(x.dtype, add.dtype)
        x, add = x.to(dtype), add.to(dtype)
    y_BND: Tensor = _gather(x, order, add)
    return y_BND


def wind_scatter(y: Tensor, order: Tensor) -> Tensor:
    """Return ordered tokens to storage order: row order[r] of the result is y[r].

    Args:
        y: tokens (B, N, D) in the given order.
        order: as for `wind_gather`.

    Returns:
        (B, N, D), in storage order.

    Raises:
        ValueError: shapes, dtypes or devices do not match.
    """
    _check("wind_scatter", y, order)
    x_BND: Tensor = _scatter(y, order)
    return x_BND


@torch.library.custom_op("aqtopo_kernels::wind_gather", mutates_args=())
def _gather(x: Tensor, order: Tensor, add: Tensor | None) -> Tensor:
    compute = implementation("wind_gather", x.device, x.dtype)
    with current_device(x.device):
        y_BND: Tensor = compute.gather(x, order, add)
    return y_BND


@torch.library.custom_op("aqtopo_kernels::wind_scatter", mutates_args=())
def _scatter(y: Tensor, order: Tensor) -> Tensor:
    compute = implementation("wind_gather", y.device, y.dtype)
    with current_device(y.device):
        x_BND: Tensor = compute.scatter(y, order)
    return x_BND


@_gather.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


@_scatter.register_fake
def _(y: Tensor, *_: Any) -> Tensor:
    return y.new_empty(y.shape)


def _save_gather(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    _, order, add = inputs
    ctx.shared_add = add is not None and len(add) < len(output)
    ctx.save_for_backward(order)


def _differentiate_gather(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    (order,) = ctx.saved_tensors
    dx = _scatter(dy, order) if ctx.needs_input_grad[0] else None
    dadd = None
    if ctx.needs_input_grad[2]:
        dadd = dy.sum(0, keepdim=True) if ctx.shared_add else dy
    return dx, None, dadd


def _save_scatter(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(inputs[1])


def _differentiate_scatter(ctx: Any, dx: Tensor) -> tuple[Tensor | None, ...]:
    return _gather(dx, ctx.saved_tensors[0], None), None


_gather.register_autograd(_differentiate_gather, setup_context=_save_gather)
_scatter.register_autograd(_differentiate_scatter, setup_context=_save_scatter)


def _check(op: str, x: Tensor, order: Tensor) -> None:
    if x.ndim != 3:
        raise ValueError(f"{op} needs tokens (B, N, D), but got {tuple(x.shape)}.")
    check_order(op, order, (x.shape[0], x.shape[1]), x.device)


def _check_add(x: Tensor, add: Tensor) -> None:
    if add.shape not in (x.shape, (1, *x.shape[1:])):
        raise ValueError(
            f"wind_gather adds a tensor of the tokens' shape {tuple(x.shape)}, or the same with batch 1, but "
            f"got {tuple(add.shape)}."
        )
    if add.device != x.device:
        raise ValueError(f"wind_gather adds a tensor on the tokens' device {x.device}, but got {add.device}.")
