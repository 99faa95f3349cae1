"""Where the tokens are on the map, and how they lie to the wind: what attention may have to know of them."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Way:
    """Where the tokens that come in are on the map, and how they lie to the wind.

    Attributes:
        stored: (B, N) raster index of each token; None for raster order.
        wind: (B, 2, N) eastward and northward wind of each patch, raster order [m s-1]; None where no block
            asks for it.
    """

    stored: Tensor | None = None
    wind: Tensor | None = None


RASTER = Way()
"""Tokens in raster order, without wind."""


def patch_winds(wind_B2YX: Tensor, patch: int) -> Tensor:
    """(B, 2, N) the mean wind of each patch of `patch` x `patch` cells, raster order."""
    return functional.avg_pool2d(wind_B2YX, patch).flatten(2)
