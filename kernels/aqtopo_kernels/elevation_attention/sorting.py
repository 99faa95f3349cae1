"""Sorting of tokens by elevation for the CPU implementation, and its inverse.

Shapes: B batch, G heads, N tokens, D head width.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from aqtopo_kernels.elevation_attention.workspace import workspace
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

    def of_samples(self, samples: slice) -> Self:
        """Return the terrain of some samples."""
        return replace(self, height=self.height[samples], token=self.token[samples], row=self.row[samples])

    def sources(self, name: str, x_BGND: Tensor, more_columns: int = 0) -> Tensor:
        """Return queries, keys or values, sorted and padded with zero columns, (B, G, N, D + more).

        The result is in the workspace and valid until the next call with this name.
        """
        return self._sorted(name, x_BGND, self.token, more_columns)

    def results(self, name: str, y_BGND: Tensor, more_columns: int = 0) -> Tensor:
        """Return rows of the result or their gradients, as `sources` does."""
        return self._sorted(name, y_BGND, self.row, more_columns)

    def write_sources(self, to_BGND: Tensor, sorted_BGND: Tensor) -> None:
        """Write sorted gradients of the sources in storage order."""
        for sample, token_N in enumerate(self.token):
            to_BGND[sample].index_copy_(1, token_N, sorted_BGND[sample].to(to_BGND.dtype))

    def write_results(self, to_BGND: Tensor, sorted_BGND: Tensor) -> None:
        """Write sorted rows of the result in the given order."""
        for sample, row_N in enumerate(self.row):
            to_BGND[sample].index_copy_(1, row_N, sorted_BGND[sample].to(to_BGND.dtype))

    def _sorted(self, name: str, x_BGND: Tensor, index_BN: Tensor, more_columns: int) -> Tensor:
        *shape, D = x_BGND.shape
        sorted_BGND = workspace.empty(name, (*shape, D + more_columns), self.compute)
        sorted_BGND[..., D:] = 0.0
        for x_GND, index_N, to_GND in zip(x_BGND, index_BN, sorted_BGND[..., :D], strict=True):
            torch.index_select(x_GND.to(self.compute), 1, index_N, out=to_GND)
        return sorted_BGND
