"""The loss: mean squared error over valid pixels, exact however samples fall on ranks and micro-steps.

    L = sum over valid pixels of (prediction - target)^2 / number of valid pixels

over the whole step, all ranks and micro-steps. Targets are normalised, so pollutants weigh alike. A rank only
knows its own squared errors; DeepSpeed averages gradients over the W ranks and adds those of the micro-steps,
so `squared error x W / valid pixels of the step` on each rank gives the gradient of L.
"""

import torch
from torch import Tensor


def squared_error(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Sum of squared errors over valid pixels.

    Args:
        prediction: (B, K, C, H, W), normalised, any float dtype.
        target: (B, K, C, H, W), normalised; may hold anything where it is not valid.
        valid: (B, K, C, H, W), bool.

    Returns:
        A scalar in fp32 (fp64 for fp64 predictions).
    """
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    # Masked before the square: NaN x 0 would still be NaN, in the gradient too.
    error = torch.where(valid, prediction.to(dtype) - target.to(dtype), 0)
    return error.square().sum()
