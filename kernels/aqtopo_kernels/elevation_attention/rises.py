"""Sums of score gradient x rise for alpha's gradient, without the N x N matrix of rises.

If the rises factorise, rise_ij = sum_x left_ix right_jx, flash attention computes the sums: with X more
columns `right` on the keys and zeros in these columns of the queries, the queries' gradients contain
sum_j S_ij right_jx, where S_ij is the score gradient. For an edge of a bin between query and key,
z_j - z_i = (z_j - edge) + (edge - z_i); both terms are positive, so nothing cancels. Pairs within one bin
have no edge between them, and their sum is computed directly.

Shapes: B batch, G heads, R rows of a band, C keys, W keys of a bin, S bins, X = 2 S, D head width.
"""

import torch
from torch import Tensor

BIN = 128
"""Tokens per bin of a band: smaller bins need more columns, larger bins a larger direct sum."""

_BINS_ABOVE = 4
"""Number of bins of the keys above a band: shorter sums have smaller rounding errors."""


def factors_above(query_height_BR: Tensor, key_height_BC: Tensor) -> tuple[Tensor, Tensor]:
    """Return left (B, R, X) and right (B, C, X) factors of rises to keys above all queries."""
    C = key_height_BC.shape[1]
    first_S = torch.arange(min(_BINS_ABOVE, C)) * C // min(_BINS_ABOVE, C)
    below_RS = torch.ones((query_height_BR.shape[1], len(first_S)), dtype=torch.bool)
    return _factors(query_height_BR, key_height_BC, first_S, below_RS)


def factors_across_bins(height_BR: Tensor) -> tuple[Tensor, Tensor]:
    """Return left and right factors (B, R, X) of rises between bins of a band; 0 within a bin."""
    place_R = torch.arange(height_BR.shape[1])
    first_S = place_R[BIN::BIN].contiguous()
    return _factors(height_BR, height_BR, first_S, place_R[:, None] < first_S)


def _factors(
    query_height_BR: Tensor, key_height_BC: Tensor, first_S: Tensor, below_RS: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the factors for bins of keys that begin at `first`, and for queries below each bin."""
    bin_C1 = torch.bucketize(torch.arange(key_height_BC.shape[1]), first_S, right=True)[:, None] - 1
    member_CS = bin_C1 == torch.arange(len(first_S))
    edge_B1S = key_height_BC[:, None, first_S]
    descent_BRS = (edge_B1S - query_height_BR[..., None]) * below_RS
    ascent_BCS = (key_height_BC[..., None] - edge_B1S) * member_CS
    left_BRX = torch.cat([below_RS.expand_as(descent_BRS), descent_BRS], -1)
    right_BCX = torch.cat([ascent_BCS, member_CS.expand_as(ascent_BCS)], -1)
    return left_BRX, right_BCX


def sum_within_bins(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    dout: Tensor,
    lse_BGR: Tensor,
    height_BR: Tensor,
    alpha_G11: Tensor,
) -> Tensor:
    """Sum score gradient x rise over the pairs within each bin of a band, (G,).

    q (scaled), k, v, out and its gradient dout are (B, G, R, D); the log-sum-exp is (B, G, R).
    """
    total_G = torch.zeros(q.shape[1], dtype=torch.float64)
    for first in range(0, height_BR.shape[1], BIN):
        q_W, k_W, v_W, out_W, dout_W = (x[:, :, first : first + BIN] for x in (q, k, v, out, dout))
        height_BW = height_BR[:, first : first + BIN]
        rise_B1WW = rise(height_BW, height_BW).unsqueeze(1)
        bias_BGWW = -alpha_G11 * rise_B1WW
        score_BGWW = (q_W @ k_W.mT).add_(bias_BGWW)
        weight_BGWW = score_BGWW.sub_(lse_BGR[:, :, first : first + BIN, None]).exp_()
        gradient_BGWW = (dout_W @ v_W.mT).sub_((dout_W * out_W).sum(-1, keepdim=True)).mul_(weight_BGWW)
        total_G += gradient_BGWW.mul_(rise_B1WW).sum((0, 2, 3), dtype=torch.float64)
    return total_G


def rise(query_height_BR: Tensor, key_height_BC: Tensor) -> Tensor:
    """Compute max(0, z_j - z_i), (B, R, C)."""
    return (key_height_BC[:, None, :] - query_height_BR[:, :, None]).clamp_min_(0.0)
