"""The two attentions of the model: with the elevation bias (block 0 by default) and without.

Both read tokens in storage order and may write their rows in another order: what a row attends to is summed
over, so only the queries move.

Shapes: B batch, H heads, N tokens, D width, E = D / H.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from aqtopo.config import AttentionSetting
from aqtopo.model.dropout import SampleDropout, Seeds
from aqtopo_kernels import backend_for, better_than_torch, elevation_attention, wind_gather

BY_TORCH = "PyTorch's scaled_dot_product_attention"

ALPHA = ".attn.alpha"
"""How the names of the barrier strengths end."""


@dataclass(frozen=True)
class Way:
    """Where the tokens that come in are on the map, and how they lie to the wind.

    Attributes:
        stored: (B, N) raster index of each token; None for raster order.
        upwind: (B, N, N) from `aqtopo.model.barriers.upwindness`; None where no block asks for it.
        drift: (B, N, N) from `aqtopo.model.barriers.drift` [km2 d-1]; None likewise.
    """

    stored: Tensor | None = None
    upwind: Tensor | None = None
    drift: Tensor | None = None


class SelfAttention(nn.Module):
    """Multi-head self-attention, softmax(q k / sqrt(E)) v.

    Args:
        dim: D.
        heads: H.
        setting: `model.attention`: whose kernels to use.
        dropout: share of the projection's outputs dropped in training.
        layer: name of this layer in the seeds of its masks.
    """

    def __init__(
        self, dim: int, heads: int, *, setting: AttentionSetting = "auto", dropout: float, layer: str
    ) -> None:
        super().__init__()
        self.heads = heads
        self.setting = setting
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = SampleDropout(dropout, f"{layer}.proj")

    def forward(
        self,
        x_BND: Tensor,
        seeds: Seeds = None,
        order_BN: Tensor | None = None,
        way: Way | None = None,  # noqa: ARG002
    ) -> Tensor:
        """Row r of the result is the attention of token order[r], or of token r without an order."""
        q_BND, k_BND, v_BND = self.qkv(x_BND).chunk(3, -1)
        k, v = split_heads(k_BND, self.heads), split_heads(v_BND, self.heads)
        if self._fused(x_BND.device, x_BND.dtype):
            y_BHNE = elevation_attention(split_heads(q_BND, self.heads), k, v, order=order_BN)
        else:
            q_BND = q_BND if order_BN is None else wind_gather(q_BND, order_BN)
            y_BHNE = functional.scaled_dot_product_attention(split_heads(q_BND, self.heads), k, v)
        projected_BND: Tensor = self.proj_drop(self.proj(y_BHNE.transpose(1, 2).flatten(2)), seeds)
        return projected_BND

    def backend(self, device: torch.device, dtype: torch.dtype) -> str:
        """What computes the attention on such a device, in words."""
        return f"aqtopo_kernels ({backend_for(device)})" if self._fused(device, dtype) else BY_TORCH

    def _fused(self, device: torch.device, dtype: torch.dtype) -> bool:
        if self.setting == "auto":
            return better_than_torch(device, dtype, self.proj.in_features // self.heads)
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
        dropout: float,
        layer: str,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.alpha = nn.Parameter(torch.full((heads if per_head else 1,), alpha))
        self.proj_drop = SampleDropout(dropout, f"{layer}.proj")
        # As bit patterns: casting the model to bfloat16 would cast a float buffer too, and 4.37 km with it to
        # the nearest 32 m.
        bits = np.ascontiguousarray(height_m, np.float32).view(np.int32)
        self.register_buffer("height_bits", torch.as_tensor(bits), persistent=False)

    def forward(
        self, x_BND: Tensor, seeds: Seeds = None, order_BN: Tensor | None = None, way: Way | None = None
    ) -> Tensor:
        """Row r of the result is the attention of token order[r], or of token r without an order."""
        q, k, v = (split_heads(y, self.heads) for y in self.qkv(x_BND).chunk(3, -1))
        height_BN = self.height_bits.view(torch.float32).expand(x_BND.shape[0], -1)
        if way is not None and way.stored is not None:
            height_BN = height_BN.gather(1, way.stored.long())
        y_BHNE = elevation_attention(q, k, v, height_BN, self.alpha, order_BN)
        projected_BND: Tensor = self.proj_drop(self.proj(y_BHNE.transpose(1, 2).flatten(2)), seeds)
        return projected_BND

    def backend(self, device: torch.device, dtype: torch.dtype) -> str:  # noqa: ARG002
        """What computes the attention on such a device, in words."""
        return f"aqtopo_kernels ({backend_for(device)}) with elevation bias"


def split_heads(x_BND: Tensor, heads: int) -> Tensor:
    """(B, H, N, E), a view."""
    B, N, D = x_BND.shape
    return x_BND.view(B, N, heads, D // heads).transpose(1, 2)
