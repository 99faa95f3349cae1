"""Elevation attention operator: checks its arguments, then runs the device's implementation.

The PyTorch operator `aqtopo_kernels::elevation_attention` serves all devices; `backend_for` selects the
implementation. The function returns the attention; the operator also returns the log-sum-exp for its backward
pass.

Shapes: B batch, H heads, N tokens, D head width.
"""

import math
from typing import Any

import torch
from torch import Tensor

from aqtopo_kernels.backend import Backend, backend_for, current_device, implementation
from aqtopo_kernels.elevation_attention.configurations import WIDEST_HEAD
from aqtopo_kernels.elevation_attention.layout import empty_like_tokens
from aqtopo_kernels.elevation_attention.reference import elevation_attention_reference
from aqtopo_kernels.order import check_order

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def elevation_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    elevation: Tensor | None = None,
    alpha: Tensor | None = None,
    order: Tensor | None = None,
    scale: float | None = None,
    backend: Backend | str | None = None,
) -> Tensor:
    """Compute attention with a bias against keys that lie higher than the query.

    score_ij = scale q_i k_j - alpha max(0, z_j - z_i) / 1000, the bias of TopoFlow. It reduces the influence
    of higher cells; pass -z to reduce the influence of lower cells.

    It computes in float32 (float64 if q is float64), also within torch.autocast, which would round the rises.
    The reference implementation follows autocast. There is no second derivative: PyTorch raises a
    RuntimeError.

    Shapes: B batch, H heads, N tokens, D head width.

    Args:
        q: queries (B, H, N, D), of any strides, in storage order.
        k: keys, as q.
        v: values, as q.
        elevation: height z of each token [m], (B, N), in storage order; float32 or float64 for any dtype of
            q (bfloat16 would round 4.37 km by up to 16 m). It gets no gradient.
        alpha: barrier strength [1/km], one for all heads (1,) or one per head (H,); any sign. If elevation
            and alpha are None, there is no bias.
        order: (B, N), int32 or int64; row r of the result belongs to token order[r]. Keys and values stay in
            storage order, because they are summed over. Each row must be a permutation of 0..N-1; this is
            checked only with AQTOPO_KERNELS_DEBUG=1, because the check synchronises with the device. None
            keeps storage order.
        scale: factor on q k, positive; 1 / sqrt(D) if None.
        backend: "reference" for the reference implementation; None for the result of `backend_for`.

    Returns:
        (B, H, N, D), in q's dtype.

    Raises:
        ValueError: shapes, dtypes or devices do not match, or the scale is not positive.
    """
    _check_qkv(q, k, v)
    if elevation is not None and alpha is not None:
        _check_terrain(q, elevation, alpha)
    elif elevation is not None or alpha is not None:
        raise ValueError("elevation_attention needs both elevation and alpha, or neither (no bias).")
    if order is not None:
        check_order("elevation_attention", order, (q.shape[0], q.shape[2]), q.device)
    scale = _positive(scale, q.shape[-1])
    if _resolve(backend, q) is Backend.REFERENCE:
        return elevation_attention_reference(q, k, v, elevation, alpha, order, scale)
    out_BHND: Tensor = _attention(q, k, v, elevation, alpha, order, scale)[0]
    return out_BHND


@torch.library.custom_op("aqtopo_kernels::elevation_attention", mutates_args=())
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    elevation: Tensor | None,
    alpha: Tensor | None,
    order: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    compute = implementation("elevation_attention", q.device, q.dtype)
    with current_device(q.device), torch.autocast(q.device.type, enabled=False):
        out, lse = compute.forward(q, k, v, elevation, alpha, order, scale)
    return out, lse


@torch.library.custom_op("aqtopo_kernels::elevation_attention_backward", mutates_args=())
def _attention_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    elevation: Tensor | None,
    alpha: Tensor | None,
    order: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    compute = implementation("elevation_attention", q.device, q.dtype)
    with current_device(q.device), torch.autocast(q.device.type, enabled=False):
        dq, dk, dv, dalpha = compute.backward(dout, q, k, v, out, lse, elevation, alpha, order, scale)
    return dq, dk, dv, q.new_zeros(1, dtype=torch.float32) if dalpha is None else dalpha


@_attention.register_fake
def _(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    lse = q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
    return empty_like_tokens(q), lse


@_attention_backward.register_fake
def _(_: Tensor, q: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    alpha = rest[5]
    dalpha = q.new_empty(1, dtype=torch.float32) if alpha is None else torch.empty_like(alpha)
    return empty_like_tokens(q), empty_like_tokens(q), empty_like_tokens(q), dalpha


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, elevation, alpha, order, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, *output, elevation, alpha, order)


def _differentiate(ctx: Any, dout: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    dq, dk, dv, dalpha = _attention_backward(dout, *ctx.saved_tensors, ctx.scale)
    return dq, dk, dv, None, dalpha if ctx.needs_input_grad[4] else None, None, None


_attention.register_autograd(_differentiate, setup_context=_save)


def _resolve(backend: Backend | str | None, q: Tensor) -> Backend:
    """Return the requested backend, or that of the device; raise a ValueError if it is not available."""
    if backend is not None and backend not in set(Backend):
        raise ValueError(
            f"elevation_attention has no backend {str(backend)!r}; choose from {', '.join(Backend)}, or None."
        )
    if backend == Backend.REFERENCE:
        return Backend.REFERENCE
    given = backend_for(q.device)
    if backend not in (None, given):
        raise ValueError(
            f"elevation_attention has the backend {given.value!r} on {q.device.type!r}, but got backend="
            f'{str(backend)!r}; only "reference" runs on every device.'
        )
    if given is Backend.TRITON and (
        q.dtype == torch.float64 or q.shape[-1] % 16 or q.shape[-1] > WIDEST_HEAD
    ):
        raise ValueError(
            "elevation_attention's Triton kernels take a head width that is a multiple of 16 up "
            f"to {WIDEST_HEAD}, in float32, bfloat16 or float16, but got q {tuple(q.shape)} in {q.dtype}; "
            'choose another width, or pass backend="reference".'
        )
    return given


def _positive(scale: float | None, width: int) -> float:
    """Return the scale; it must be positive, because the Triton kernels take maxima of unscaled scores."""
    scale = width**-0.5 if scale is None else scale
    if not 0 < scale < math.inf:
        raise ValueError(
            f"elevation_attention needs a finite, positive scale, but got {scale}; negate q if the scale is "
            "negative."
        )
    return scale


def _check_qkv(q: Tensor, k: Tensor, v: Tensor) -> None:
    if q.ndim != 4 or k.shape != q.shape or v.shape != q.shape:
        raise ValueError(
            f"elevation_attention needs q, k and v of one shape (B, H, N, D), but got q {tuple(q.shape)}, "
            f"k {tuple(k.shape)} and v {tuple(v.shape)}."
        )
    if not q.numel():
        raise ValueError(
            f"elevation_attention needs at least one sample, head, token and column, but got q "
            f"{tuple(q.shape)}."
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
            f"elevation_attention needs elevation [m] in float32 or float64, but got {elevation.dtype}; 16 "
            "bits round heights by metres, so keep it in float32 when you cast the model."
        )
    if elevation.requires_grad:
        raise ValueError("elevation_attention gives elevation no gradient; pass elevation.detach().")
    if alpha.shape not in ((1,), (heads,)):
        raise ValueError(
            f"elevation_attention needs alpha of shape (1,) or (H,) = ({heads},) for q {tuple(q.shape)}, but "
            f"got {tuple(alpha.shape)}."
        )
    if alpha.dtype not in _FLOATS:
        raise ValueError(f"elevation_attention needs a floating alpha, but got {alpha.dtype}.")
    _check_device("q, elevation and alpha", q, elevation, alpha)


def _check_device(names: str, *tensors: Tensor) -> None:
    if len({tensor.device for tensor in tensors}) > 1:
        devices = ", ".join(str(tensor.device) for tensor in tensors)
        raise ValueError(f"elevation_attention needs {names} on one device, but they are on {devices}.")
