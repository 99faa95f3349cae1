"""Sums of score gradient x rise, which alpha's gradient is made of, without the N x N matrix of rises.

Sums of a gradient S_ij over a matrix that factorises, rise_ij = sum_x left_ix right_jx, come out of flash
attention: with X more columns `right` on the keys, which meet zeros of the queries, the queries' gradients
hold sum_j S_ij right_jx. From a query up to a key the way leads over an edge between them, z_j - z_i =
(z_j - edge) + (edge - z_i), and as both steps lead upwards, nothing cancels. Where there is no edge between
them, among neighbours of one bin, the sum is taken directly.

Shapes: B batch, G heads, R rows of a band, C keys above it, W keys of a bin, S bins, X = 2 S, D head width.
"""

import torch
from torch import Tensor

BIN = 128
"""Neighbours of a bin."""


def factors_above(query_height_BR: Tensor, key_height_BC: Tensor) -> tuple[Tensor, Tensor]:
    """Left (B, R, 2) and right (B, C, 2) factors of the rises from queries to keys above them all."""
    edge_B1 = key_height_BC[:, :1]
    left_BR2 = torch.stack([torch.ones_like(query_height_BR), edge_B1 - query_height_BR], -1)
    right_BC2 = torch.stack([key_height_BC - edge_B1, torch.ones_like(key_height_BC)], -1)
    return left_BR2, right_BC2


def factors_across_bins(height_BR: Tensor) -> tuple[Tensor, Tensor]:
    """Left and right factors (B, R, X) of the rises within a band from one bin to a higher one, else 0."""
    place_R = torch.arange(height_BR.shape[1])
    first_S = place_R[BIN::BIN]
    edge_B1S = height_BR[:, None, first_S]
    below_RS = place_R[:, None] < first_S
    inside_RS = ~below_RS & (place_R[:, None] < first_S + BIN)
    step_BRS = height_BR[..., None] - edge_B1S
    left_BRX = torch.cat([below_RS.expand_as(step_BRS), -step_BRS * below_RS], -1)
    right_BRX = torch.cat([step_BRS * inside_RS, inside_RS.expand_as(step_BRS)], -1)
    return left_BRX, right_BRX


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
    """Sum of score gradient x rise over the pairs of each bin of a band, (G,).

    q (scaled), k, v, out and its gradient dout are (B, G, R, D), the log-sum-exp is (B, G, R).
    """
    total_G = torch.zeros(q.shape[1], dtype=torch.float64)
    for first in range(0, height_BR.shape[1], BIN):
        q_W, k_W, v_W, out_W, dout_W = (x[:, :, first : first + BIN] for x in (q, k, v, out, dout))
        rise_B1WW = pairwise_rise(height_BR[:, first : first + BIN]).to(q.dtype).unsqueeze(1)
        bias_BGWW = rise_B1WW * -alpha_G11.to(q.dtype)
        score_BGWW = (q_W @ k_W.mT).add_(bias_BGWW)
        weight_BGWW = score_BGWW.sub_(lse_BGR[:, :, first : first + BIN, None]).exp_()
        gradient_BGWW = (dout_W @ v_W.mT).sub_((dout_W * out_W).sum(-1, keepdim=True)).mul_(weight_BGWW)
        total_G += gradient_BGWW.mul_(rise_B1WW).sum((0, 2, 3))
    return total_G


def pairwise_rise(height_BR: Tensor) -> Tensor:
    """max(0, z_j - z_i), (B, R, R)."""
    return (height_BR[:, None, :] - height_BR[:, :, None]).clamp_min_(0.0)
