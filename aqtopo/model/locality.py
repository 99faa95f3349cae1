"""Gaussian locality bias of attention, centred on the query or on its upwind departure point.

The bias is an inner product of five numbers of the query and five of the key:

    -|x_j - o_i|^2 / (2 s^2) = (o_i x_j - |x_j|^2 / 2 - |o_i|^2 / 2) / s^2

The numbers are additional columns of the queries and keys, so any attention that accepts wider heads computes
the bias in O(N) memory. They are distances of thousands of km that nearly cancel, so they are in float32 or
float64 for any dtype of the model. For half-degree patches over China the scores then have a mean error of
1e-4 and a maximum error of 1e-3 (`tests/model/test_locality.py`); the error grows as (extent / s)^2.

Shapes: B batch, H heads, h heads with the bias, N tokens, E head width, C columns.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from aqtopo.model.geometry import PatchCentres, TokenGeometry, from_float32_bits, to_float32_bits

KM_A_DAY = 86.4
"""Distance that a wind of 1 m s-1 carries the air in a day [km]."""

LONGEST_TRAVEL = 1.0
"""Initial travel time of the last head [d]; the first head starts at 0, the others are evenly spaced."""

NARROWEST, EXTRA_WIDTH_UPWIND, EXTRA_WIDTH_CENTRED = 0.75, 0.75, 2.25
"""Initial Gaussian widths, in mean distances of neighbouring patches: the width of the first head, and the
width added up to the last head with and without a departure point upwind."""

EXTRA_COLUMNS = 16
"""Columns added to each head: Triton's kernels take multiples of 16."""


class AttentionFunction(Protocol):
    """Attention over (B, H, N, any width); `scale` is the factor on q k, None for 1 / sqrt(width)."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, /, *, scale: float | None) -> Tensor:
        """Return the attention (B, H, N, width)."""


class LocalityBias(nn.Module):
    """Gaussian bias of a head's scores, centred on the query or on its upwind departure point.

    score_ij gets -|x_j - (x_i - travel_h w_i)|^2 / (2 width_h^2), with chord distances and the wind w_i.
    x_i - travel_h w_i is the departure point of semi-Lagrangian advection schemes (Staniforth and Cote 1991,
    Mon. Weather Rev. 119, 2206).

    Args:
        heads: h, the number of heads with the bias; they come first.
        unbiased_heads: number of heads without the bias; they come last.
        centres: of the patches.
        upwind: centre the bias on the departure point; otherwise on the query.

    Attributes:
        log_reach: (h,) natural logarithm of the Gaussian's width, in mean distances of neighbouring patches.
        travel: (h,) travel time of the air [d]; None without `upwind`.
    """

    centre_bits: Tensor  # (N, 3) int32
    axes_bits: Tensor  # (2, N, 3) int32

    def __init__(self, heads: int, unbiased_heads: int, centres: PatchCentres, *, upwind: bool) -> None:
        super().__init__()
        self.unbiased_heads, self.spacing_km = unbiased_heads, centres.spacing_km
        self.register_buffer("centre_bits", to_float32_bits(centres.km), persistent=False)
        self.register_buffer("axes_bits", to_float32_bits(centres.axes), persistent=False)
        travel = torch.linspace(0.0, LONGEST_TRAVEL, heads)
        # The departure point is less certain after a longer travel time, so the width grows with it. Without
        # travel times the heads differ only in width, so the range of widths is larger.
        extra_width = EXTRA_WIDTH_UPWIND if upwind else EXTRA_WIDTH_CENTRED
        self.log_reach = nn.Parameter(torch.log(NARROWEST + extra_width * travel))
        self.travel = nn.Parameter(travel) if upwind else None

    def attend(
        self,
        attention: AttentionFunction,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        query_index_BN: Tensor | None,
        geometry: TokenGeometry,
    ) -> Tensor:
        """Compute attention with the bias, (B, H, N, E) in q's dtype, in at least float32.

        Args:
            attention: attention without the bias; it may return its rows in another order.
            q: queries (B, H, N, E).
            k: keys (B, H, N, E).
            v: values (B, H, N, E).
            query_index_BN: raster index of each query; None for raster order.
            geometry: map position of the keys, and the wind.
        """
        E, dtype = q.shape[-1], bias_dtype(q.dtype)
        with _without_autocast(q.device):
            query_columns, key_columns = self.columns(query_index_BN, geometry, dtype)
            wide_q, wide_k = _widened(q, query_columns * E**0.5), _widened(k, key_columns)
            wide_v = functional.pad(v.to(dtype), (0, EXTRA_COLUMNS))
            return attention(wide_q, wide_k, wide_v, scale=E**-0.5)[..., :E].to(q.dtype)

    def columns(
        self, query_index_BN: Tensor | None, geometry: TokenGeometry, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Return the factors of the bias: of queries (B or 1, H, N, C) and of keys (B or 1, 1, N, C)."""
        centre_11N3 = from_float32_bits(self.centre_bits).to(dtype)[None, None]
        square_11N1 = centre_11N3.square().sum(-1, keepdim=True)
        key_11NC = torch.cat([centre_11N3, -0.5 * square_11N1, torch.ones_like(square_11N1)], -1)

        origin_BhN3 = self._bias_centres(centre_11N3, geometry)
        precision_h11 = (torch.exp(-2.0 * self.log_reach.to(dtype)) / self.spacing_km**2).view(-1, 1, 1)
        square_BhN1 = origin_BhN3.square().sum(-1, keepdim=True)
        query_BhNC = torch.cat([origin_BhN3, torch.ones_like(square_BhN1), -0.5 * square_BhN1], -1)
        # The third pair pads the head axis at its end with the heads without the bias.
        query_BHNC = functional.pad(precision_h11 * query_BhNC, (0, 0, 0, 0, 0, self.unbiased_heads))
        return _gather_tokens(query_BHNC, query_index_BN), _gather_tokens(key_11NC, geometry.raster_index)

    def _bias_centres(self, centre_11N3: Tensor, geometry: TokenGeometry) -> Tensor:
        """Return the centres of the bias for each token, (B or 1, h, N, 3) [km]."""
        if self.travel is None:
            return centre_11N3.expand(-1, len(self.log_reach), -1, -1)
        assert geometry.patch_wind is not None, "the model passes the wind to every block"
        dtype = centre_11N3.dtype
        wind_B2N, axes_2N3 = geometry.patch_wind.to(dtype), from_float32_bits(self.axes_bits).to(dtype)
        velocity_BN3 = torch.einsum("ban,anc->bnc", wind_B2N, axes_2N3)
        return centre_11N3 - self.travel.to(dtype).view(-1, 1, 1) * (KM_A_DAY * velocity_BN3)[:, None]


def bias_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of attention with the locality bias, in a model of `dtype`."""
    return torch.promote_types(dtype, torch.float32)


def attend(
    locality: LocalityBias | None,
    attention: AttentionFunction,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_index_BN: Tensor | None,
    geometry: TokenGeometry,
) -> Tensor:
    """Compute the attention, with the locality bias if there is one; see `LocalityBias.attend`."""
    if locality is None:
        return attention(q, k, v, scale=None)
    return locality.attend(attention, q, k, v, query_index_BN, geometry)


def _without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Turn torch.autocast off, which would round the positions; it does not support the meta device."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def _widened(x_BHNE: Tensor, columns: Tensor) -> Tensor:
    """Return x, the columns and zeros side by side, (B, H, N, E + 16), in the dtype of the columns."""
    given = columns.expand(*x_BHNE.shape[:-1], -1)
    return functional.pad(
        torch.cat([x_BHNE.to(columns.dtype), given], -1), (0, EXTRA_COLUMNS - columns.shape[-1])
    )


def _gather_tokens(x_BHNC: Tensor, index_BN: Tensor | None) -> Tensor:
    """Return the rows of x for tokens with these raster indices, (B, H, N, C)."""
    if index_BN is None:
        return x_BHNC
    _, H, _, C = x_BHNC.shape
    return x_BHNC.expand(len(index_BN), -1, -1, -1).gather(
        2, index_BN.long()[:, None, :, None].expand(-1, H, -1, C)
    )
