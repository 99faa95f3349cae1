"""Launch of the Triton kernels of elevation attention: strides, scaling and grids.

`aqtopo_kernels.elevation_attention` checks the arguments. Importing this module needs Triton; it is imported
only for the Triton backend.

Shapes: B batch, H heads, N tokens, D head width.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from aqtopo_kernels.architecture import architecture
from aqtopo_kernels.elevation_attention.configurations import Configuration, Kernel, configuration, parts
from aqtopo_kernels.elevation_attention.kernel import (
    delta_kernel,
    forward_kernel,
    key_value_gradient_kernel,
    query_gradient_kernel,
)
from aqtopo_kernels.elevation_attention.layout import empty_like_tokens

_UNIT_M = 2.0**20
"""Unit of heights in the kernels [m]: a power of two, so scaling is exact, and larger than any rise."""

_UNIT_KM = _UNIT_M / 1000.0

_HEIGHT_PADDING = 256
"""Padding after the last token's height. Heights are read without a mask to the end of the last block, and
the forward kernel also reads the next block of keys: at least the largest BLOCK_M and twice its BLOCK_N."""

_DELTA_ROWS = 16
"""Rows per program of `delta_kernel`, which is limited by memory bandwidth."""


class _Terrain(NamedTuple):
    height: Tensor | None  # (B, N + padding) float32
    height_b: int
    slope: Tensor | None  # (H,) float32


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    elevation: Tensor | None,
    alpha: Tensor | None,
    order: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Compute attention (B, H, N, D) and lse (B, H, N) float32, the base-2 logarithm of the softmax's sum.

    Row r of the output belongs to token order[r]; lse is in storage order. Without elevation there is no
    bias. The output's memory layout is (B, N, H, D), so merging its heads is free.

    Raises:
        ValueError: the kernels do not support D or the size of a head.
    """
    B, H, N, _ = q.shape
    q, k, v = _unit_strides(q, k, v)
    terrain = _terrain(elevation, alpha, H, scale)
    arch, chosen = _chosen("forward", q, terrain)
    out = _empty_result(q)
    lse = q.new_empty((B, H, N), dtype=torch.float32)
    forward_kernel[(_blocks(N, chosen.block_m), B * H)](
        q, k, v, out, lse, terrain.height, terrain.slope, _int32(order), terrain.height_b,
        *_strides(q, k, out), H, N, scale * math.log2(math.e),
        **_constants(chosen, q, N, terrain), ORDERED=order is not None, GROUPS=chosen.groups,
        **chosen.options(arch),
    )  # fmt: skip
    return out, lse


def backward(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Compute the gradients of q, k, v and alpha (None without elevation) from the results of `forward`.

    Every sum has a fixed order and a single writer, so repeated calls return the same bits.
    """
    q, k, v = _unit_strides(q, k, v)
    dout, out = _unit_stride(dout), _unit_stride(out)
    terrain = _terrain(elevation, alpha, q.shape[1], scale)
    delta, dout = _delta(dout, out, order)
    inputs = (q, k, v, dout, lse, delta, terrain, scale)
    dk, dv = _key_value_gradients(*inputs)
    dq, drise = _query_gradient(*inputs)
    if alpha is None or drise is None:
        return dq, dk, dv, None
    dalpha = drise.double().view(*q.shape[:2], -1).sum((0, 2)) * -_UNIT_KM
    dalpha = dalpha.sum(0, keepdim=True) if alpha.shape[0] == 1 else dalpha
    return dq, dk, dv, dalpha.to(alpha.dtype)


def _delta(dout: Tensor, out: Tensor, order: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return delta, the sums of dout x out over D, (B, H, N) float32, and dout; both in storage order."""
    B, H, N, D = dout.shape
    delta = dout.new_empty((B, H, N), dtype=torch.float32)
    stored = dout if order is None else _empty_result(dout)
    width = 1 << (D - 1).bit_length()
    delta_kernel[(_blocks(N, _DELTA_ROWS), B * H)](
        dout, out, delta, stored, _int32(order), *_strides(dout, out, stored), H, N,
        D=D, WIDTH=width, ROWS=_DELTA_ROWS, ORDERED=order is not None, num_warps=4,
    )  # fmt: skip
    return delta, stored


def _query_gradient(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dout: Tensor,
    lse: Tensor,
    delta: Tensor,
    terrain: _Terrain,
    scale: float,
) -> tuple[Tensor, Tensor | None]:
    B, H, N, _ = q.shape
    arch, chosen = _chosen("dq", q, terrain)
    blocks = _blocks(N, chosen.block_m)
    dq = _empty_result(q)
    drise = None if terrain.height is None else q.new_empty((B * H, blocks), dtype=torch.float32)
    query_gradient_kernel[(blocks, B * H)](
        q, k, v, dout, lse, delta, terrain.height, terrain.slope, dq, drise, terrain.height_b,
        *_strides(q, k, dout, dq), H, N, scale * math.log2(math.e), scale,
        **_constants(chosen, q, N, terrain), **chosen.options(arch),
    )  # fmt: skip
    return dq, drise


def _key_value_gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dout: Tensor,
    lse: Tensor,
    delta: Tensor,
    terrain: _Terrain,
    scale: float,
) -> tuple[Tensor, Tensor]:
    B, H, N, _ = q.shape
    arch, chosen = _chosen("dkdv", q, terrain)
    dk, dv = _empty_result(k), _empty_result(v)
    key_value_gradient_kernel[(_blocks(N, chosen.block_n), B * H)](
        q, k, v, dout, lse, delta, terrain.height, terrain.slope, dk, dv, terrain.height_b,
        *_strides(q, k, dout, dk, dv), H, N, scale * math.log2(math.e), scale,
        **_constants(chosen, q, N, terrain), **chosen.options(arch),
    )  # fmt: skip
    return dk, dv


def _chosen(kernel: Kernel, q: Tensor, terrain: _Terrain) -> tuple[str, Configuration]:
    arch = architecture()
    return arch, configuration(kernel, q.dtype, arch, q.shape[3], plain=terrain.height is None)


def _constants(chosen: Configuration, q: Tensor, tokens: int, terrain: _Terrain) -> dict[str, Any]:
    """Return the compile-time arguments of a kernel."""
    return {
        "PARTS": parts(q.shape[3]),
        "BLOCK_M": chosen.block_m,
        "BLOCK_N": chosen.block_n,
        "BIAS": terrain.height is not None,
        "EVEN": tokens % chosen.block_m == 0 and tokens % chosen.block_n == 0,
        "BY_BITS": q.dtype == torch.bfloat16 and architecture().startswith("gfx"),
    }


def _terrain(elevation: Tensor | None, alpha: Tensor | None, heads: int, scale: float) -> _Terrain:
    """Return heights in the kernels' unit, and the slope that turns a rise into an unscaled score."""
    if elevation is None or alpha is None:
        return _Terrain(None, 0, None)
    height = functional.pad(elevation.detach().float() / _UNIT_M, (0, _HEIGHT_PADDING))
    slope = (alpha.detach().float() * (-_UNIT_KM / scale)).expand(heads).contiguous()
    return _Terrain(height, height.stride(0), slope)


def _unit_strides(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Copy tensors whose strides the kernels do not support: K and V must have the same strides."""
    q, k, v = (_unit_stride(x) for x in (q, k, v))
    return (q, k, v) if k.stride() == v.stride() else (q, k.contiguous(), v.contiguous())


def _unit_stride(x: Tensor) -> Tensor:
    """Return x, copied if its columns are not contiguous."""
    x = x if x.stride(3) == 1 else x.contiguous()
    _check_addresses(x.shape[2], x.stride(2))
    return x


def _empty_result(x: Tensor) -> Tensor:
    """Allocate a result with x's shape."""
    _, H, N, D = x.shape
    _check_addresses(N, H * D)
    return empty_like_tokens(x)


def _check_addresses(tokens: int, stride: int) -> None:
    if tokens * stride >= 2**31:
        raise ValueError(
            f"The Triton kernels address a head in 32 bits, but N = {tokens} tokens of stride {stride} "
            "exceed 2^31 elements; use fewer tokens or heads, or make q, k and v contiguous."
        )


def _strides(*tensors: Tensor) -> list[int]:
    """Return the batch, head and token stride of each tensor."""
    return [x.stride(axis) for x in tensors for axis in range(3)]


def _int32(order: Tensor | None) -> Tensor | None:
    return None if order is None else order.to(torch.int32).contiguous()


def _blocks(tokens: int, block: int) -> int:
    return -(-tokens // block)
