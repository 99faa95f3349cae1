"""First values of the weights, as in ClimaX, but a pure function of a seed.

Linear weights and patch projections from a normal distribution of width 0.02 cut off at 2, biases 0, norms 1,
variable and position embeddings sines and cosines, the variables' query 0.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from aqtopo.model.embedding import TokenEmbedding, VariableAggregation

_STD = 0.02


def initialise_modules(model: nn.Module, seed: int) -> None:
    """Gives every Linear, LayerNorm, patch projection and aggregation of the model its first values."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=_STD, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, TokenEmbedding):
            nn.init.trunc_normal_(module.proj_weights, std=_STD, generator=generator)
            nn.init.zeros_(module.proj_biases)
        elif isinstance(module, VariableAggregation):
            nn.init.xavier_uniform_(module.in_proj_weight, generator=generator)
            nn.init.zeros_(module.in_proj_bias)


def sincos_1d(dim: int, positions: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Sines, then cosines, of each position at dim / 2 frequencies from 1 down to 1/10000.

    Returns:
        (positions, dim).
    """
    assert dim % 2 == 0, dim
    frequency = 10000.0 ** (-np.arange(dim // 2, dtype=np.float64) / (dim / 2))
    angle = np.asarray(positions, np.float64).ravel()[:, None] * frequency
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


def sincos_2d(dim: int, grid: tuple[int, int]) -> npt.NDArray[np.float64]:
    """The position embedding of a grid: columns in its first half, rows in the second, as in ClimaX.

    Returns:
        (rows x columns, dim), in raster order.
    """
    rows, columns = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    return np.concatenate([sincos_1d(dim // 2, columns), sincos_1d(dim // 2, rows)], axis=1)
