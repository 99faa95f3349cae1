"""Attention with a bias of its own for each pair of tokens, written out: for experiments on small maps.

It holds N x N numbers a head and sample; the configuration refuses it for large maps.

Shapes: B batch, H heads, N tokens, D width.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from aqtopo.model.attention import folded_in, split_heads
from aqtopo.model.dropout import SampleDropout, Seeds
from aqtopo.model.locality import Locality, attend
from aqtopo.model.way import RASTER, Way
from aqtopo_kernels import wind_gather

UPWIND_START = 1.0
"""First value of a head's preference for what lies upwind, in units of the score."""


class PairAttention(nn.Module):
    """Self-attention with score_ij - alpha_h rise_ij + upwind_h upwindness_ij, and a local bias if asked for.

    Args:
        dim: D.
        heads: H.
        rises_km: (N, N) what is climbed from j to i, at [i, j] in raster order [km]; None for no barrier.
        upwind: learn how much each head prefers what lies upwind.
        locality: a preference for what is near; None for none.
        alpha: initial barrier strength [1/km].
        per_head: learn one strength a head.
        qkv_bias: whether queries, keys and values have biases.
        dropout: share of the projection's outputs dropped in training.
        layer: name of this layer in the seeds of its masks.
    """

    rises: Tensor | None  # (N, N) [km]

    def __init__(
        self,
        dim: int,
        heads: int,
        rises_km: npt.NDArray[np.float32] | None,
        *,
        upwind: bool,
        locality: Locality | None,
        alpha: float,
        per_head: bool,
        qkv_bias: bool,
        dropout: float,
        layer: str,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.alpha = (
            None if rises_km is None else nn.Parameter(torch.full((heads if per_head else 1,), alpha))
        )
        self.upwind = nn.Parameter(torch.full((heads,), UPWIND_START)) if upwind else None
        self.locality = locality
        self.proj_drop = SampleDropout(dropout, f"{layer}.proj")
        rises = None if rises_km is None else torch.as_tensor(rises_km)
        self.register_buffer("rises", rises, persistent=False)

    def forward(
        self, x_BND: Tensor, seeds: Seeds = None, order_BN: Tensor | None = None, way: Way = RASTER
    ) -> Tensor:
        """Row r of the result is the attention of token order[r], or of token r without an order."""
        q_BND, k_BND, v_BND = self.qkv(x_BND).chunk(3, -1)
        q_BND = q_BND if order_BN is None else wind_gather(q_BND, order_BN)
        rows_BN = way.stored if order_BN is None else order_BN
        bias_BHNN = self.bias(rows_BN, way)

        def biased(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None) -> Tensor:
            return functional.scaled_dot_product_attention(q, k, v, bias_BHNN.to(q.dtype), scale=scale)

        q, k, v = (split_heads(y, self.heads) for y in (q_BND, k_BND, v_BND))
        y_BHNE = attend(self.locality, biased, q, k, v, rows_BN, way)
        projected_BND: Tensor = self.proj_drop(self.proj(y_BHNE.transpose(1, 2).flatten(2)), seeds)
        return projected_BND

    def backend(self, device: torch.device, dtype: torch.dtype) -> str:  # noqa: ARG002
        """What computes the attention on such a device, in words."""
        return f"PyTorch's scaled_dot_product_attention with a dense bias{folded_in(self.locality, dtype)}"

    def bias(self, rows_BN: Tensor | None, way: Way) -> Tensor:
        """(B or 1, H, N, N) what the scores get besides the local bias, rows and keys where they are."""
        parts: list[Tensor] = []
        if self.alpha is not None and self.rises is not None:
            rises = _placed(self.rises[None], rows_BN, way.stored)
            parts.append(-self.alpha.view(1, -1, 1, 1) * rises)
        if self.upwind is not None:
            assert way.upwind is not None, "the model gives every block what lies upwind"
            parts.append(self.upwind.view(1, -1, 1, 1) * _placed(way.upwind, rows_BN, way.stored))
        first, *others = parts
        return sum(others, first).expand(-1, self.heads, -1, -1)


def _placed(pairs_BNN: Tensor, rows_BN: Tensor | None, keys_BN: Tensor | None) -> Tensor:
    """(B, 1, N, N) pairs of raster indices, looked up for the tokens at these rows and keys."""
    batches = {len(index) for index in (rows_BN, keys_BN) if index is not None}
    if batches and len(pairs_BNN) == 1:
        pairs_BNN = pairs_BNN.expand(*batches, -1, -1)
    tokens = pairs_BNN.shape[-1]
    if rows_BN is not None:
        pairs_BNN = pairs_BNN.gather(1, rows_BN.long()[:, :, None].expand(-1, -1, tokens))
    if keys_BN is not None:
        pairs_BNN = pairs_BNN.gather(2, keys_BN.long()[:, None, :].expand(-1, tokens, -1))
    return pairs_BNN[:, None]
