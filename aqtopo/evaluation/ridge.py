"""Sums of a ridge regression for each cell, and its solutions.

Shapes: M cells, P predictor, J output.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

PENALTIES = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
"""Candidates for the ridge penalty, as a multiple of the number of times."""


@dataclass(frozen=True, eq=False)
class RidgeSums:
    """Sums over times, float64. Products of a block of times are in float32.

    Attributes:
        products: (M, P, P + J), predictors times predictors and outputs.
        squares: (M, J), squared outputs.
    """

    products: Tensor
    squares: Tensor

    @classmethod
    def zeros(cls, cells: int, predictors: int, outputs: int) -> "RidgeSums":
        """No times."""
        return cls(
            torch.zeros(cells, predictors, predictors + outputs, dtype=torch.float64),
            torch.zeros(cells, outputs, dtype=torch.float64),
        )

    @property
    def split(self) -> tuple[Tensor, Tensor]:
        """Predictors times predictors (M, P, P), and times outputs (M, P, J)."""
        predictors = self.products.shape[1]
        return self.products[..., :predictors], self.products[..., predictors:]

    def solve(self) -> list[Tensor]:
        """Return the coefficients (M, P, J) for each of `PENALTIES`."""
        gram, products = self.split
        # The first predictor is 1, so its sum of squares is the number of times. It has no penalty.
        count = gram[:, 0, 0]
        unit = torch.eye(gram.shape[1], dtype=gram.dtype)
        unit[0, 0] = 0.0
        candidates = []
        for penalty in PENALTIES:
            matrix = gram + penalty * count.clamp(min=1.0)[:, None, None] * unit
            matrix[count == 0, 0, 0] = 1.0  # a cell without a time: all coefficients become 0
            candidates.append(torch.linalg.solve(matrix, products))
        return candidates

    def squared_error(self, coefficients: Tensor) -> float:
        """Return the squared error of coefficients over cells, outputs and these times."""
        gram, products = self.split
        return float(self.squares.sum() + ((gram @ coefficients - 2 * products) * coefficients).sum())
