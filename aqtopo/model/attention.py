"""Self-attention, and self-attention with the elevation bias (block 0 by default).

Both read tokens in storage order and can write rows in another order. The order of the keys does not matter
to their sum, so only the queries are reordered.

Shapes: B batch, H heads, N tokens, D width, E = D / H.
"""

from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from aqtopo.config import AttentionSetting
from aqtopo.model.dropout import SampleDropout, Seeds
from aqtopo.model.geometry import RASTER_ORDER, TokenGeometry, from_float32_bits, to_float32_bits
from aqtopo.model.locality import EXTRA_COLUMNS, AttentionFunction, LocalityBias, attend, bias_dtype
from aqtopo_kernels import backend_for, better_than_torch, elevation_attention, wind_gather

TORCH_BACKEND = "PyTorch's scaled_dot_product_attention"

ALPHA = ".attn.alpha"
"""Suffix of the parameter names of the barrier strengths."""


class SelfAttention(nn.Module):
    """Multi-head self-attention, softmax(q k / sqrt(E)) v.

    Args:
        dim: D.
        heads: H.
        locality: Gaussian locality bias; None for none.
        setting: `model.attention`, which selects the implementation.
        dropout: rate of dropout on the outputs of the projection.
        layer: name of this layer in the seeds of its masks.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        locality: LocalityBias | None = None,
        setting: AttentionSetting = "auto",
        dropout: float,
        layer: str,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.setting = setting
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.locality = locality
        self.proj_drop = SampleDropout(dropout, f"{layer}.proj")

    def forward(
        self,
        x_BND: Tensor,
        seeds: Seeds = None,
        order_BN: Tensor | None = None,
        geometry: TokenGeometry = RASTER_ORDER,
    ) -> Tensor:
        """Compute the attention; row r belongs to token order[r], or to token r without an order."""
        q_BND, k_BND, v_BND = self.qkv(x_BND).chunk(3, -1)
        attention: AttentionFunction = torch_attention
        query_index_BN = geometry.raster_index
        if self._uses_kernels(x_BND.device, x_BND.dtype):
            attention = partial(elevation_attention, order=order_BN)
        elif order_BN is not None:
            q_BND, query_index_BN = wind_gather(q_BND, order_BN), order_BN
        q, k, v = (split_heads(y, self.heads) for y in (q_BND, k_BND, v_BND))
        y_BHNE = attend(self.locality, attention, q, k, v, query_index_BN, geometry)
        projected_BND: Tensor = self.proj_drop(self.proj(y_BHNE.transpose(1, 2).flatten(2)), seeds)
        return projected_BND

    def backend(self, device: torch.device, dtype: torch.dtype) -> str:
        """Return the name of the implementation on a device, for logs."""
        kernels = self._uses_kernels(device, dtype)
        name = f"aqtopo_kernels ({backend_for(device)})" if kernels else TORCH_BACKEND
        return f"{name}{locality_suffix(self.locality, dtype)}"

    def _uses_kernels(self, device: torch.device, dtype: torch.dtype) -> bool:
        if self.setting == "auto":
            width = self.proj.in_features // self.heads
            if self.locality is not None:
                width, dtype = width + EXTRA_COLUMNS, bias_dtype(dtype)
            return better_than_torch(device, dtype, width)
        return self.setting == "fused"


class ElevationAttention(nn.Module):
    """Self-attention with a bias against keys that lie higher than the query.

    score_ij = q_i k_j / sqrt(E) - alpha max(0, z_j - z_i) / 1000, with elevations z in metres.

    Arguments besides those of `SelfAttention`:
        height_m: (N,) float32, elevation of each token [m] in raster order. Negated elevations turn the bias
            against keys that lie lower.
        alpha: initial barrier strength [1/km].
        per_head: learn one strength per head.
    """

    height_bits: Tensor  # (N,) int32

    def __init__(
        self,
        dim: int,
        heads: int,
        height_m: npt.NDArray[np.float32],
        *,
        alpha: float,
        per_head: bool,
        locality: LocalityBias | None = None,
        dropout: float,
        layer: str,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.alpha = nn.Parameter(torch.full((heads if per_head else 1,), alpha))
        self.proj_drop = SampleDropout(dropout, f"{layer}.proj")
        self.locality = locality
        self.register_buffer("height_bits", to_float32_bits(height_m), persistent=False)

    def forward(
        self,
        x_BND: Tensor,
        seeds: Seeds = None,
        order_BN: Tensor | None = None,
        geometry: TokenGeometry = RASTER_ORDER,
    ) -> Tensor:
        """Compute the attention; row r belongs to token order[r], or to token r without an order."""
        q, k, v = (split_heads(y, self.heads) for y in self.qkv(x_BND).chunk(3, -1))
        raster_index = geometry.raster_index
        height_BN = from_float32_bits(self.height_bits).expand(x_BND.shape[0], -1)
        if raster_index is not None:
            height_BN = height_BN.gather(1, raster_index.long())
        biased = partial(elevation_attention, elevation=height_BN, alpha=self.alpha, order=order_BN)
        y_BHNE = attend(self.locality, biased, q, k, v, raster_index, geometry)
        projected_BND: Tensor = self.proj_drop(self.proj(y_BHNE.transpose(1, 2).flatten(2)), seeds)
        return projected_BND

    def backend(self, device: torch.device, dtype: torch.dtype) -> str:
        """Return the name of the implementation on a device, for logs."""
        name = f"aqtopo_kernels ({backend_for(device)}) with elevation bias"
        return f"{name}{locality_suffix(self.locality, dtype)}"


def torch_attention(q_BHNE: Tensor, k_BHNE: Tensor, v_BHNE: Tensor, *, scale: float | None) -> Tensor:
    """Compute PyTorch's attention, (B, H, N, E)."""
    return functional.scaled_dot_product_attention(q_BHNE, k_BHNE, v_BHNE, scale=scale)


def locality_suffix(locality: LocalityBias | None, dtype: torch.dtype) -> str:
    """Return the suffix that describes the local bias in logs."""
    return "" if locality is None else f" and local bias, in {bias_dtype(dtype)}"


def split_heads(x_BND: Tensor, heads: int) -> Tensor:
    """Return the heads of x, (B, H, N, E), as a view."""
    B, N, D = x_BND.shape
    return x_BND.view(B, N, heads, D // heads).transpose(1, 2)
