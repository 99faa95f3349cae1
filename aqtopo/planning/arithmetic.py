"""FLOP of a micro-step by part of the model: counted in a pass on the meta device, which computes nothing.

PyTorch's counter follows the model's matrix products; attention is added by formula, since every flash kernel
does the same whatever PyTorch would choose here: 4 N^2 D a sample forward, 2.5 times that backward, where the
scores are computed again. Matrix products cost twice their forward pass backward.
"""

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from aqtopo.config import RunConfig
from aqtopo.model import AirQualityViT
from aqtopo.planning.activations import attention_without_arithmetic

BACKWARD_OF_PRODUCTS = 2.0
BACKWARD_OF_ATTENTION = 2.5


@dataclass(frozen=True)
class Arithmetic:
    """FLOP of one micro-step on one rank, forward pass, by part.

    Attributes:
        products: matrix products of `embedding`, `blocks` and `head`.
        attention: scores and weighted sums of all blocks.
        checkpointing: whether the blocks are computed again in the backward pass.
    """

    products: dict[str, int]
    attention: int
    checkpointing: bool

    @property
    def forward(self) -> float:
        """FLOP of the forward pass."""
        return float(sum(self.products.values()) + self.attention)

    @property
    def backward(self) -> float:
        """FLOP of the backward pass, with what gradient checkpointing computes again."""
        again = self.products["blocks"] + self.attention if self.checkpointing else 0
        products = BACKWARD_OF_PRODUCTS * sum(self.products.values())
        return products + BACKWARD_OF_ATTENTION * self.attention + again


def count_arithmetic(model: AirQualityViT, config: RunConfig) -> Arithmetic:
    """Count the FLOP of one micro-step.

    Args:
        model: the run's model on the meta device.
        config: the run; the micro-batch counts.
    """
    batch, (rows, columns) = config.micro_batch, config.data.grid
    leads = 1 if config.model.lead_time == "encoder" else len(config.data.horizons)
    dtype = next(model.parameters()).dtype
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), torch.no_grad(), counter, attention_without_arithmetic():
        inputs = torch.empty(batch, len(config.data.variables), rows, columns, dtype=dtype)
        model.eval()(inputs, torch.empty(batch, 2, rows, columns), torch.empty(batch, leads), None)
    counts = {name: sum(by_op.values()) for name, by_op in counter.get_flop_counts().items()}
    whole, kind = counts["Global"], type(model).__name__
    blocks = sum(counts.get(f"{kind}.blocks.{index}", 0) for index in range(config.model.depth))
    head = counts.get(f"{kind}.head", 0)
    attention = 4 * batch * config.tokens**2 * config.model.dim * config.model.depth
    products = {"embedding": whole - blocks - head, "blocks": blocks, "head": head}
    return Arithmetic(products, attention, config.model.gradient_checkpointing)
