"""Sorting of tokens by elevation for the CPU implementation, and its inverse.

Shapes: B batch, G heads, N tokens, D head width.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from aqtopo_kernels.order import invert_order


@dataclass(frozen=True)
class SortedTerrain:
    """Terrain of a batch, sorted by elevation.

    Attributes:
        height: (B, N) ascending heights [m].
        token: (B, N) index of the token at each sorted position.
        row: (B, N) row of the result at each sorted position.
        compute: dtype of heights and of sorted copies.
    """

    height: Tensor
    token: Tensor
    row: Tensor
    compute: torch.dtype

    @classmethod
    def of(cls, elevation: Tensor, order: Tensor | None, compute: torch.dtype) -> Self:
        """Sort heights (B, N) [m]; the results are in the given order (B, N)."""
        height_BN, token_BN = elevation.to(compute).sort(dim=1, stable=True)
        row_BN = token_BN if order is None else invert_order(order).gather(1, token_BN)
        return cls(height_BN, token_BN, row_BN, compute)

    def sources(self, x_BGND: Tensor, more_columns: int = 0) -> Tensor:
        """Return queries, keys or values, sorted and padded with zero columns, (B, G, N, D + more)."""
        return self._sorted(x_BGND, self.token, more_columns)

    def results(self, y_BGND: Tensor, more_columns: int = 0) -> Tensor:
        """Return rows of the result or their gradients, sorted and padded, (B, G, N, D + more)."""
        return self._sorted(y_BGND, self.row, more_columns)

    def write_sources(self, to_BGND: Tensor, sorted_BGND: Tensor) -> None:
        """Write sorted gradients of the sources in storage order."""
        for sample, token_N in enumerate(self.token):
            to_BGND[sample].index_copy_(1, token_N, sorted_BGND[sample].to(to_BGND.dtype))

    def write_results(self, to_BGND: Tensor, sorted_BGND: Tensor) -> None:
        """Write sorted rows of the result in the given order."""
        for sample, row_N in enumerate(self.row):
            to_BGND[sample].index_copy_(1, row_N, sorted_BGND[sample].to(to_BGND.dtype))

    def _sorted(self, x_BGND: Tensor, index_BN: Tensor, more_columns: int) -> Tensor:
        *shape, D = x_BGND.shape
        sorted_BGND = torch.empty((*shape, D + more_columns), dtype=self.compute)
        sorted_BGND[..., D:] = 0.0
        for sample, index_N in enumerate(index_BN):
            sorted_BGND[sample, ..., :D] = x_BGND[sample].index_select(1, index_N)
        return sorted_BGND
