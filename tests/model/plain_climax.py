"""Reference implementation of ClimaX's patch embedding, with every intermediate tensor."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from aqtopo.model import AirQualityViT


def plain_embedding(model: AirQualityViT, inputs_BVYX: Tensor) -> Tensor:
    """Embed each variable by a convolution, then aggregate by nn.MultiheadAttention with one query."""
    dim, heads = model.config.dim, model.config.heads
    tokens = [
        functional.conv2d(inputs_BVYX[:, v : v + 1], weight, bias, stride=model.config.patch)
        for v, (weight, bias) in enumerate(
            zip(model.token_embeds.proj_weights, model.token_embeds.proj_biases, strict=True)
        )
    ]
    x_BVND = torch.stack(tokens, 1).flatten(3).transpose(2, 3) + model.var_embed.unsqueeze(2)
    B, V, N, D = x_BVND.shape
    x_RVD = x_BVND.transpose(1, 2).reshape(B * N, V, D)
    attention = nn.MultiheadAttention(dim, heads, batch_first=True, dtype=x_RVD.dtype)
    query_R1D = model.var_query.expand(B * N, -1, -1)
    y_R1D, _ = torch.func.functional_call(
        attention, dict(model.var_agg.named_parameters()), (query_R1D, x_RVD, x_RVD)
    )
    return y_R1D.view(B, N, D)
