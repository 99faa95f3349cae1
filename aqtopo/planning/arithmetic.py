"""FLOP of a micro-step by part of the model: counted in a pass on the meta device, which computes nothing.

PyTorch's counter follows the model's matrix products; attention is added by formula, since every flash kernel
does the same whatever PyTorch would choose here: 4 N^2 D a sample forward, 2.5 times that backward, where the
scores are computed again. With the local bias D is that of its wider heads, and the precision float32. Matrix
products cost twice their forward pass backward.
"""

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from aqtopo.config import RunConfig
from aqtopo.model import AirQualityViT
from aqtopo.model.locality import EXTRA_COLUMNS
from aqtopo.planning.activations import attention_without_arithmetic

BACKWARD_OF_PRODUCTS = 2.0
BACKWARD_OF_ATTENTION = 2.5


@dataclass(frozen=True)
class Arithmetic:
    """FLOP of one micro-step on one rank, forward pass, by part.

    Attributes:
        products: matrix products of `embedding`, `blocks` and `head`.
        attention: scores and weighted sums of all blocks.
        float32_attention: those of the blocks with the local bias, which are in float32 whatever the run's
            precision is.
        checkpointing: whether the blocks are computed again in the backward pass.
    """

    products: dict[str, int]
    attention: int
    float32_attention: int
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

    def forward_s(self, rate: float, float32_rate: float) -> float:
        """Duration of the forward pass at these rates, the run's precision's and float32's [FLOP/s]."""
        return (self.forward - self.float32_attention) / rate + self.float32_attention / float32_rate

    def backward_s(self, rate: float, float32_rate: float) -> float:
        """Duration of the backward pass, likewise."""
        in_float32 = (BACKWARD_OF_ATTENTION + self.checkpointing) * self.float32_attention
        return (self.backward - in_float32) / rate + in_float32 / float32_rate


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
    settings, scores = config.model, 4 * batch * config.tokens**2
    local = len(settings.bias_blocks) if settings.local_bias else 0
    in_float32 = scores * (settings.dim + settings.heads * EXTRA_COLUMNS) * local
    attention = scores * settings.dim * (settings.depth - local) + in_float32
    products = {"embedding": whole - blocks - head, "blocks": blocks, "head": head}
    return Arithmetic(products, attention, in_float32, settings.gradient_checkpointing)
