"""The two attentions of the model: with the elevation bias (block 0 by default) and without.

Both read tokens in storage order and may write their rows in another order: what a row attends to is summed
over, so only the queries move.

Shapes: B batch, H heads, N tokens, D width, E = D / H.
"""

from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from aqtopo.config import AttentionSetting
from aqtopo.model.bits import from_bits, to_bits
from aqtopo.model.dropout import SampleDropout, Seeds
from aqtopo.model.locality import MORE_COLUMNS, Attention, Locality, attend, precision
from aqtopo.model.way import RASTER, Way
from aqtopo_kernels import backend_for, better_than_torch, elevation_attention, wind_gather

BY_TORCH = "PyTorch's scaled_dot_product_attention"

ALPHA = ".attn.alpha"
"""How the names of the barrier strengths end."""


class SelfAttention(nn.Module):
    """Multi-head self-attention, softmax(q k / sqrt(E)) v.

    Args:
        dim: D.
        heads: H.
        locality: a preference for what is near; None for none.
        setting: `model.attention`: whose kernels to use.
        dropout: share of the projection's outputs dropped in training.
        layer: name of this layer in the seeds of its masks.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        locality: Locality | None = None,
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
        self, x_BND: Tensor, seeds: Seeds = None, order_BN: Tensor | None = None, way: Way = RASTER
    ) -> Tensor:
        """Row r of the result is the attention of token order[r], or of token r without an order."""
        q_BND, k_BND, v_BND = self.qkv(x_BND).chunk(3, -1)
        attention: Attention = by_torch
        rows_BN = way.stored
        if self._fused(x_BND.device, x_BND.dtype):
            attention = partial(elevation_attention, order=order_BN)
        elif order_BN is not None:
            q_BND, rows_BN = wind_gather(q_BND, order_BN), order_BN
        q, k, v = (split_heads(y, self.heads) for y in (q_BND, k_BND, v_BND))
        y_BHNE = attend(self.locality, attention, q, k, v, rows_BN, way)
        projected_BND: Tensor = self.proj_drop(self.proj(y_BHNE.transpose(1, 2).flatten(2)), seeds)
        return projected_BND

    def backend(self, device: torch.device, dtype: torch.dtype) -> str:
        """What computes the attention on such a device, in words."""
        by = f"aqtopo_kernels ({backend_for(device)})" if self._fused(device, dtype) else BY_TORCH
        return f"{by}{folded_in(self.locality, dtype)}"

    def _fused(self, device: torch.device, dtype: torch.dtype) -> bool:
        if self.setting == "auto":
            width = self.proj.in_features // self.heads
            if self.locality is not None:
                width, dtype = width + MORE_COLUMNS, precision(dtype)
            return better_than_torch(device, dtype, width)
        return self.setting == "fused"


class ElevationAttention(nn.Module):
    """Self-attention that loses strength with every metre the key lies above the query.

    Args:
        dim: D.
        heads: H.
        height_m: (N,) float32; the tokens' heights [m] in raster order, or their negatives, which turns the
            direction round: then what comes from below is hindered.
        alpha: initial barrier strength [1/km].
        per_head: learn one strength a head.
        locality: a preference for what is near; None for none.
        dropout: share of the projection's outputs dropped in training.
        layer: name of this layer in the seeds of its masks.
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
        locality: Locality | None = None,
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
        self.register_buffer("height_bits", to_bits(height_m), persistent=False)

    def forward(
        self, x_BND: Tensor, seeds: Seeds = None, order_BN: Tensor | None = None, way: Way = RASTER
    ) -> Tensor:
        """Row r of the result is the attention of token order[r], or of token r without an order."""
        q, k, v = (split_heads(y, self.heads) for y in self.qkv(x_BND).chunk(3, -1))
        height_BN = from_bits(self.height_bits).expand(x_BND.shape[0], -1)
        if way.stored is not None:
            height_BN = height_BN.gather(1, way.stored.long())
        biased = partial(elevation_attention, elevation=height_BN, alpha=self.alpha, order=order_BN)
        y_BHNE = attend(self.locality, biased, q, k, v, way.stored, way)
        projected_BND: Tensor = self.proj_drop(self.proj(y_BHNE.transpose(1, 2).flatten(2)), seeds)
        return projected_BND

    def backend(self, device: torch.device, dtype: torch.dtype) -> str:
        """What computes the attention on such a device, in words."""
        return f"aqtopo_kernels ({backend_for(device)}) with elevation bias{folded_in(self.locality, dtype)}"


def by_torch(q_BHNE: Tensor, k_BHNE: Tensor, v_BHNE: Tensor, *, scale: float | None) -> Tensor:
    """PyTorch's attention, (B, H, N, E)."""
    return functional.scaled_dot_product_attention(q_BHNE, k_BHNE, v_BHNE, scale=scale)


def folded_in(locality: Locality | None, dtype: torch.dtype) -> str:
    """What a preference for what is near changes in the computation, in words."""
    return "" if locality is None else f" and local bias, in {precision(dtype)}"


def split_heads(x_BND: Tensor, heads: int) -> Tensor:
    """(B, H, N, E), a view."""
    B, N, D = x_BND.shape
    return x_BND.view(B, N, heads, D // heads).transpose(1, 2)
