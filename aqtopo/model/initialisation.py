"""Initial weights: a pure function of seed and module name, scaled to the width of the model.

Each layer preserves the variance. Linear weights are Xavier uniform. Patch projections are normal with
variance 1 / (pixels of a patch), so that tokens of normalised pixels are as large as the position embedding.
ClimaX uses a standard deviation of 0.02 everywhere, which is right for its width of 1024. In a narrow model
the input would be much smaller than the position embedding. The head's last layer keeps 0.02, so that the
first forecasts are near the mean (with tendencies: near the present state). As in ClimaX, biases and the
variable query are 0, norms are 1, and the variable and position embeddings are sines and cosines.
"""

import hashlib

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from aqtopo.model.embedding import TokenEmbedding, VariableAggregation

_LAST_LAYER_STD = 0.02


def initialise_modules(model: nn.Module, last_layer: nn.Module, seed: int) -> None:
    """Initialise every Linear, LayerNorm, patch projection and aggregation.

    `last_layer` is the last layer of the head.
    """
    for name, module in model.named_modules():
        # Each module has random numbers of its own, so another module's shape does not change them.
        generator = module_generator(seed, name)
        if isinstance(module, nn.Linear):
            if module is last_layer:
                nn.init.trunc_normal_(module.weight, std=_LAST_LAYER_STD, generator=generator)
            else:
                nn.init.xavier_uniform_(module.weight, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, TokenEmbedding):
            pixels = module.proj_weights[0, 0].numel()
            nn.init.normal_(module.proj_weights, std=pixels**-0.5, generator=generator)
            nn.init.zeros_(module.proj_biases)
        elif isinstance(module, VariableAggregation):
            nn.init.xavier_uniform_(module.in_proj_weight, generator=generator)
            nn.init.zeros_(module.in_proj_bias)


def module_generator(seed: int, name: str) -> torch.Generator:
    """Return the generator of one module's initial weights."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest) >> 1)


def sincos_1d(dim: int, positions: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return sines, then cosines (positions, dim) of positions at dim / 2 frequencies from 1 to 1/10000."""
    assert dim % 2 == 0, dim
    frequency = 10000.0 ** (-np.arange(dim // 2, dtype=np.float64) / (dim / 2))
    angle = np.asarray(positions, np.float64).ravel()[:, None] * frequency
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


def sincos_2d(dim: int, grid: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Return the position embedding (rows x columns, dim) of a grid in raster order.

    Columns are in the first half of the dimensions and rows in the second, as in ClimaX.
    """
    rows, columns = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    return np.concatenate([sincos_1d(dim // 2, columns), sincos_1d(dim // 2, rows)], axis=1)
