"""Patch embedding and variable aggregation of ClimaX, combined into small matrices.

ClimaX (Nguyen et al., 2023) makes one token per variable and patch, (B, V, N, D), and aggregates the V tokens
of a patch by attention with a learned query. The query does not depend on the input, and a token is affine in
the pixels of its patch. So both steps are products of the pixels with small matrices, which are computed once
per forward pass. Parameters and function are ClimaX's; the (B, V, N, D) tensor is never allocated.

Shapes: B batch, V variables, Y, X rows and columns of the grid, N tokens, Q pixels of a patch, D width, H
heads of the aggregation, E = D / H.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class TokenEmbedding(nn.Module):
    """Linear patch projections, one per variable, stored like V convolution kernels with ClimaX's names."""

    def __init__(self, variables: int, dim: int, patch: int) -> None:
        super().__init__()
        self.proj_weights = nn.Parameter(torch.zeros(variables, dim, 1, patch, patch))
        self.proj_biases = nn.Parameter(torch.zeros(variables, dim))


class VariableAggregation(nn.Module):
    """Parameters of the attention over variables, named as in nn.MultiheadAttention."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)


def patch_pixels(x_BVYX: Tensor, patch: int) -> Tensor:
    """Return the pixels of each patch, (B, N, V, Q), with patches and pixels in raster order."""
    B, V, Y, X = x_BVYX.shape
    tiles = x_BVYX.reshape(B, V, Y // patch, patch, X // patch, patch)
    return tiles.permute(0, 2, 4, 1, 3, 5).reshape(B, -1, V, patch * patch)


def collapsed_embedding(
    x_BNVQ: Tensor,
    token_embeds: TokenEmbedding,
    var_embed_1VD: Tensor,
    var_query_11D: Tensor,
    var_agg: VariableAggregation,
) -> Tensor:
    """Embed patches as tokens (B, N, D), aggregated over variables.

    P_v x_v + c_v is the token of variable v, q_h the learned query divided by sqrt(E), and K_h, V_h, O_h are
    the key, value and output projections. Then score_hv = q_h K_h (P_v x_v + c_v), and the result is
    sum_hv softmax_v(score_h)_v O_h V_h (P_v x_v + c_v) + O b_V + b_O. The keys' bias adds the same number to
    all scores of a head, which the softmax cancels. Computed in at least float32.
    """
    dtype = var_query_11D.dtype
    compute = torch.promote_types(dtype, torch.float32)
    # The constant c_v is the projection of an additional pixel of value 1.
    constant_VD = token_embeds.proj_biases.to(compute) + var_embed_1VD[0]
    affine_VDQ = torch.cat([token_embeds.proj_weights.flatten(2), constant_VD.unsqueeze(-1)], -1)
    pixels_BNVQ = functional.pad(x_BNVQ.to(compute), (0, 1), value=1.0)
    (B, N, V, _), H = pixels_BNVQ.shape, var_agg.heads

    score_BNHV = (pixels_BNVQ.flatten(2) @ _score_matrix(affine_VDQ, var_query_11D, var_agg)).view(B, N, H, V)
    # Weight the pixels first, then apply one matrix that combines P, V and O. It is 600 x 768 for 15
    # variables of 2 x 2 pixels and 8 heads, smaller than the output projection alone.
    weighted_BNHVQ = score_BNHV.softmax(-1).unsqueeze(-1) * pixels_BNVQ.unsqueeze(2)
    matrix_RD, bias_D = _value_matrix(affine_VDQ, var_agg)
    return functional.linear(weighted_BNHVQ.flatten(2), matrix_RD.T, bias_D).to(dtype)


def _score_matrix(affine_VDQ: Tensor, var_query_11D: Tensor, var_agg: VariableAggregation) -> Tensor:
    """Return the block-diagonal matrix (V Q, H V) from pixels to scores."""
    H, D = var_agg.heads, affine_VDQ.shape[1]
    query_weight_DD, key_weight_DD, _ = var_agg.in_proj_weight.to(affine_VDQ.dtype).chunk(3)
    query_bias_D = var_agg.in_proj_bias[:D].to(affine_VDQ.dtype)
    query_D = functional.linear(var_query_11D[0, 0].to(affine_VDQ.dtype), query_weight_DD, query_bias_D)
    query_HE = query_D.view(H, D // H) * (D // H) ** -0.5
    projected_HD = torch.einsum("he,hed->hd", query_HE, key_weight_DD.view(H, D // H, D))
    projected_HQV = torch.einsum("hd,vdq->hqv", projected_HD, affine_VDQ)
    return torch.diag_embed(projected_HQV).permute(2, 1, 0, 3).flatten(2).flatten(0, 1)


def _value_matrix(affine_VDQ: Tensor, var_agg: VariableAggregation) -> tuple[Tensor, Tensor]:
    """Return the matrix (H V Q, D) from weighted pixels to tokens, and the bias (D,)."""
    H, D = var_agg.heads, affine_VDQ.shape[1]
    value_weight_DD = var_agg.in_proj_weight[2 * D :].to(affine_VDQ.dtype)
    value_bias_D = var_agg.in_proj_bias[2 * D :].to(affine_VDQ.dtype)
    out_weight_DD = var_agg.out_proj.weight.to(affine_VDQ.dtype)
    out_bias_D = var_agg.out_proj.bias.to(affine_VDQ.dtype)
    value_HEVQ = torch.einsum("hec,vcq->hevq", value_weight_DD.view(H, D // H, D), affine_VDQ)
    matrix_HVQD = torch.einsum("dhe,hevq->hvqd", out_weight_DD.view(D, H, D // H), value_HEVQ)
    return matrix_HVQD.flatten(0, 2), functional.linear(value_bias_D, out_weight_DD, out_bias_D)
