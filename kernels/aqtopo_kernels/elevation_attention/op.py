"""The elevation attention that callers use: checks its arguments, then computes.

What computes today is the dense reference on every device: exact, with memory that grows as N squared. A
faster path belongs in this module's dispatch and must agree with the reference.

Shapes: B batch, H heads, N tokens, D head width.
"""

import torch
from torch import Tensor

from aqtopo_kernels.elevation_attention.reference import elevation_attention_reference

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_INTEGERS = (torch.int32, torch.int64)


def elevation_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    elevation: Tensor,
    alpha: Tensor,
    order: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention in which a key that lies higher than the query is discounted by the rise between them.

    score_ij = scale q_i k_j - alpha max(0, z_j - z_i) / 1000. Information flows from key to query, so this
    hinders what comes down from a higher cell; pass -z to hinder what comes up from a lower one.

    Args:
        q: queries (B, H, N, D), of any strides, in storage order.
        k: keys, likewise.
        v: values, likewise.
        elevation: height z of each token [m], (B, N), in storage order; float32 or float64 whatever q's dtype
            is (bfloat16 would round 4.37 km by up to 16 m).
        alpha: barrier strength [1/km], one for all heads (1,) or one a head (H,); any sign.
        order: (B, N), int32 or int64; row r of the result is the attention of token order[r]. Keys and
            values stay in storage order: they are summed over. Each row must be a permutation of 0..N-1; this
            is not checked, since it would wait for the device. None keeps storage order.
        scale: factor on q k; 1 / sqrt(D) if None.

    Returns:
        (B, H, N, D), in q's dtype.

    Raises:
        ValueError: shapes, dtypes or devices do not fit; names them.
    """
    _check_qkv(q, k, v)
    _check_terrain(q, elevation, alpha)
    if order is not None:
        _check_order(q, order)
    return elevation_attention_reference(q, k, v, elevation, alpha, order, scale)


def _check_qkv(q: Tensor, k: Tensor, v: Tensor) -> None:
    if q.ndim != 4 or k.shape != q.shape or v.shape != q.shape:
        raise ValueError(
            f"elevation_attention needs q, k and v of one shape (B, H, N, D), but got q {tuple(q.shape)}, "
            f"k {tuple(k.shape)} and v {tuple(v.shape)}."
        )
    if q.dtype not in _FLOATS or k.dtype != q.dtype or v.dtype != q.dtype:
        raise ValueError(
            f"elevation_attention needs q, k and v of one floating dtype, but got q {q.dtype}, k {k.dtype} "
            f"and v {v.dtype}; cast them to one of {', '.join(map(str, _FLOATS))}."
        )
    _check_device("q, k and v", q, k, v)


def _check_terrain(q: Tensor, elevation: Tensor, alpha: Tensor) -> None:
    batch, heads, tokens, _ = q.shape
    if elevation.shape != (batch, tokens):
        raise ValueError(
            f"elevation_attention needs elevation of shape (B, N) = {(batch, tokens)} for q "
            f"{tuple(q.shape)}, but got {tuple(elevation.shape)}."
        )
    if elevation.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"elevation_attention needs elevation [m] in float32 or float64, but got {elevation.dtype}, "
            "which rounds heights by metres; keep it in float32 when the model is cast."
        )
    if alpha.shape not in ((1,), (heads,)):
        raise ValueError(
            f"elevation_attention needs alpha of shape (1,) or (H,) = ({heads},) for q {tuple(q.shape)}, but "
            f"got {tuple(alpha.shape)}."
        )
    if alpha.dtype not in _FLOATS:
        raise ValueError(f"elevation_attention needs a floating alpha, but got {alpha.dtype}.")
    _check_device("q, elevation and alpha", q, elevation, alpha)


def _check_order(q: Tensor, order: Tensor) -> None:
    if order.shape != (q.shape[0], q.shape[2]):
        raise ValueError(
            f"elevation_attention needs order of shape (B, N) = {(q.shape[0], q.shape[2])} for q "
            f"{tuple(q.shape)}, but got {tuple(order.shape)}."
        )
    if order.dtype not in _INTEGERS:
        raise ValueError(f"elevation_attention needs order in int32 or int64, but got {order.dtype}.")
    _check_device("q and order", q, order)


def _check_device(names: str, *tensors: Tensor) -> None:
    if len({tensor.device for tensor in tensors}) > 1:
        devices = ", ".join(str(tensor.device) for tensor in tensors)
        raise ValueError(f"elevation_attention needs {names} on one device, but they are on {devices}.")
