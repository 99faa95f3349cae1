"""Reference implementation of elevation attention.

Shapes: B batch, H heads, N tokens, D head width.
"""

import torch
from torch import Tensor

METRES_PER_UNIT = 1000.0
"""Metres per kilometre: the barrier strength alpha is in 1/km, elevations are in metres."""


def elevation_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    elevation: Tensor | None = None,
    alpha: Tensor | None = None,
    order: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Compute attention with score_ij = scale q_i k_j - alpha max(0, z_j - z_i) / 1000, z in metres.

    It allocates several (B, H, N, N) tensors. It computes in float64 for float64 inputs, otherwise in
    float32. The bias is not clamped: a clamp would remove alpha's gradient, and exp does not need one.
    Arguments and result are those of `aqtopo_kernels.elevation_attention`, without checks.
    """
    compute = torch.promote_types(q.dtype, torch.float32)
    q_BHND, k_BHND, v_BHND = (x.to(compute) for x in (q, k, v))
    if order is not None:
        q_BHND = q_BHND.gather(2, order.long()[:, None, :, None].expand_as(q_BHND))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    score_BHNN = scale * (q_BHND @ k_BHND.transpose(-1, -2))
    if elevation is not None and alpha is not None:
        z_key_BN = elevation.to(compute)
        z_query_BN = z_key_BN if order is None else z_key_BN.gather(1, order.long())
        rise_B1NN = (z_key_BN[:, None, None, :] - z_query_BN[:, None, :, None]).clamp_min(0.0)
        score_BHNN = score_BHNN - alpha.to(compute)[:, None, None] * (rise_B1NN / METRES_PER_UNIT)
    return (score_BHNN.softmax(-1) @ v_BHND).to(q.dtype)
