"""Bytes that DeepSpeed's ZeRO stage 2 holds on one rank: a reading of its code, term by term.

Read in DeepSpeed 0.19.8, `runtime/zero/stage_1_and_2.py`, class DeepSpeedZeroOptimizer. With W ranks, P
parameters and b bytes an element of the model's type (4 in fp32, 2 in bf16 and fp16):

    parameters      b P      `bit16_groups_flat`, whole on every rank; each group padded to a multiple of 2 W
    gradients       a P / W  `averaged_gradients`, this rank's part, a bytes an element by
                             `data_types.grad_accum_dtype`, which defaults to the model's type
    master weights  4 P / W  `single_partition_of_fp32_groups`: a clone, which even an fp32 run has
    moments         8 P / W  AdamW's two, in fp32

With `offload_optimizer: cpu` the last three are host memory, gradients in fp32. During the backward pass a
reduction buffer comes on top: `setup_buckets` allocates `reduce_bucket_size` elements at once, two such
buffers with `overlap_comm`, however small the model is. Without `contiguous_gradients` the gradients wait for
their reduction where they are, and are flattened into a second copy.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from aqtopo.config import RunConfig

ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class StateBytes:
    """Lasting state of one rank [bytes], by term.

    Attributes:
        parameters: the model's weights, on the device.
        gradients: this rank's part of the accumulated gradient.
        master_weights: this rank's fp32 weights.
        moments: this rank's two AdamW moments.
        offloaded: whether all but the parameters are in host memory.
    """

    parameters: int
    gradients: int
    master_weights: int
    moments: int
    offloaded: bool

    @property
    def device(self) -> int:
        """On the accelerator, or on the CPU where that is the device."""
        sharded = self.gradients + self.master_weights + self.moments
        return self.parameters + (0 if self.offloaded else sharded)

    @property
    def host(self) -> int:
        """In host memory, with `offload_optimizer`."""
        return self.gradients + self.master_weights + self.moments if self.offloaded else 0


def state_bytes(elements: Mapping[str, int], config: RunConfig) -> StateBytes:
    """Lasting bytes of one rank under ZeRO stage 2.

    Args:
        elements: parameters by group; DeepSpeed pads every group by itself.
        config: world size, precision and the `deepspeed` block.
    """
    world = config.world_size
    # nccl_start_alignment_factor = 2: every rank's part starts on a 4-byte boundary in 16-bit types.
    padded = sum(math.ceil(count / (2 * world)) * 2 * world for count in elements.values())
    share = padded // world
    model_type = config.deepspeed.precision
    offload = config.deepspeed.zero_optimization.offload_optimizer
    offloaded = offload is not None and offload.device == "cpu"
    gradient_type = "fp32" if offloaded else config.deepspeed.data_types.grad_accum_dtype or model_type
    return StateBytes(
        parameters=ELEMENT_BYTES[model_type] * padded,
        gradients=ELEMENT_BYTES[gradient_type] * share,
        master_weights=4 * share,
        moments=8 * share,
        offloaded=offloaded,
    )


def workspace_bytes(config: RunConfig) -> int:
    """Bytes that the backward pass needs beside all activations: a gradient as wide as an MLP's hidden layer.

    It comes into being while all is still kept. Every further gradient takes the place of what is not needed
    any more, and attention's four gradients are as wide as the tokens, a quarter of it each.
    """
    element = ELEMENT_BYTES[config.deepspeed.precision]
    return element * config.micro_batch * config.tokens * config.model.hidden_dim


def reduction_bytes(parameters: int, config: RunConfig) -> int:
    """Bytes of the buffers in which gradients wait for their reduction, during the backward pass only."""
    zero = config.deepspeed.zero_optimization
    element = ELEMENT_BYTES[config.deepspeed.precision]
    if zero.contiguous_gradients:
        return element * zero.reduce_bucket_size * (2 if zero.overlap_comm else 1)
    return element * min(parameters, zero.reduce_bucket_size) * 2
