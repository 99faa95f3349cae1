"""Attention with a bias of its own for each pair of tokens, written out: for experiments on small maps.

It holds N x N numbers a head and sample; the configuration refuses it for large maps.

Shapes: B batch, H heads, N tokens, D width.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from aqtopo.model.attention import Way, split_heads
from aqtopo.model.dropout import SampleDropout, Seeds
from aqtopo_kernels import wind_gather

UPWIND_START = 1.0
"""First value of a head's preference for what lies upwind, in units of the score."""

LONGEST_TRAVEL = 1.0
"""First value of the last head's travel time [d]; the first head's is 0, the others' lie evenly between."""

NARROWEST, WIDENING, REACH = 0.75, 0.75, 2.25
"""First widths, in distances of neighbouring patches: the first head's, and how much wider the last head's is
where air is carried, and where not."""


class Locality(nn.Module):
    """A preference for what is near, or near the place from which the air has come: a Gaussian a head.

    score_ij gets -|x_j - (x_i - travel_h w_i)|^2 / (2 width_h^2), less a term of i alone that a softmax does
    not see; w_i is the wind. The semi-Lagrangian schemes of weather models look up the air in the same place,
    the departure point (Staniforth and Cote 1991, Mon. Weather Rev. 119, 2206).

    Args:
        heads: how many have it (h below).
        free: how many further heads have not.
        squared_km2: (N, N) squared distances of patches, raster order [km2].
        carried: whether heads look upwind; otherwise around themselves.

    Attributes:
        log_width: (h,) natural logarithm of the Gaussian's width [km].
        travel: (h,) how long the air was on its way [d]; None where nothing is carried.
    """

    squared: Tensor  # (N, N) [km2]

    def __init__(self, heads: int, free: int, squared_km2: npt.NDArray[np.float64], *, carried: bool) -> None:
        super().__init__()
        self.free = free
        self.register_buffer("squared", torch.as_tensor(squared_km2, dtype=torch.float32), persistent=False)
        travel = torch.linspace(0.0, LONGEST_TRAVEL, heads)
        # Where the air was is the less certain, the longer ago; without wind, heads differ in their reach.
        width_km = nearest_km(squared_km2) * (NARROWEST + (WIDENING if carried else REACH) * travel)
        self.log_width = nn.Parameter(torch.log(width_km))
        self.travel = nn.Parameter(travel) if carried else None

    def forward(self, rows_BN: Tensor | None, way: Way) -> Tensor:
        """(B or 1, H, N, N) what is added to the scores, rows and keys where the tokens are."""
        numerator = _placed(self.squared[None], rows_BN, way.stored)
        if self.travel is not None:
            assert way.drift is not None, "the model gives every block what the wind carries"
            carried = _placed(way.drift, rows_BN, way.stored)
            numerator = numerator - 2.0 * self.travel.view(1, -1, 1, 1) * carried
        bias_BhNN = -numerator * (0.5 * torch.exp(-2.0 * self.log_width)).view(1, -1, 1, 1)
        # The heads that come last: (left, right, top, bottom, front, back) of the last three dimensions.
        return functional.pad(bias_BhNN, (0, 0, 0, 0, 0, self.free))


def nearest_km(squared_km2: npt.NDArray[np.float64]) -> float:
    """Mean distance of a patch to its nearest neighbour [km]."""
    others = squared_km2 + np.diag(np.full(len(squared_km2), np.inf))
    return float(np.sqrt(others.min(1)).mean())


class PairAttention(nn.Module):
    """Self-attention with score_ij - alpha_h rise_ij + upwind_h upwindness_ij + locality_hij.

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
        self, x_BND: Tensor, seeds: Seeds = None, order_BN: Tensor | None = None, way: Way | None = None
    ) -> Tensor:
        """Row r of the result is the attention of token order[r], or of token r without an order."""
        way = Way() if way is None else way
        q_BND, k_BND, v_BND = self.qkv(x_BND).chunk(3, -1)
        q_BND = q_BND if order_BN is None else wind_gather(q_BND, order_BN)
        rows_BN = way.stored if order_BN is None else order_BN
        bias_BHNN = self.bias(rows_BN, way).to(q_BND.dtype)
        q, k, v = (split_heads(y, self.heads) for y in (q_BND, k_BND, v_BND))
        y_BHNE = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias_BHNN)
        projected_BND: Tensor = self.proj_drop(self.proj(y_BHNE.transpose(1, 2).flatten(2)), seeds)
        return projected_BND

    def backend(self, device: torch.device, dtype: torch.dtype) -> str:  # noqa: ARG002
        """What computes the attention on such a device, in words."""
        return "PyTorch's scaled_dot_product_attention with a dense bias"

    def bias(self, rows_BN: Tensor | None, way: Way) -> Tensor:
        """(B or 1, H, N, N) what is added to the scores, rows and keys where the tokens are."""
        parts: list[Tensor] = []
        if self.alpha is not None and self.rises is not None:
            rises = _placed(self.rises[None], rows_BN, way.stored)
            parts.append(-self.alpha.view(1, -1, 1, 1) * rises)
        if self.upwind is not None:
            assert way.upwind is not None, "the model gives every block what lies upwind"
            parts.append(self.upwind.view(1, -1, 1, 1) * _placed(way.upwind, rows_BN, way.stored))
        if self.locality is not None:
            parts.append(self.locality(rows_BN, way))
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
