"""Memory and traffic of DeepSpeed's ZeRO stage 2, from its source code.

Source: DeepSpeed 0.19.8, `runtime/zero/stage_1_and_2.py` and `runtime/utils.py`. With W ranks, P parameters
and b bytes per element of the model's type (4 in fp32, 2 in bf16 and fp16), a rank holds

    parameters      b P      `bit16_groups_flat`, complete; each group is padded to a multiple of 2 W
    gradients       a P / W  `averaged_gradients`, its shard; a bytes per element by
                             `data_types.grad_accum_dtype`, by default 4
    master weights  4 P / W  `single_partition_of_fp32_groups`: a clone even in fp32
    moments         8 P / W  AdamW's two, in fp32

With `offload_optimizer: cpu` the last three are in host memory, gradients in fp32. The backward pass adds a
reduction buffer: `setup_buckets` allocates `reduce_bucket_size` elements at any model size, twice with
`overlap_comm`. Without `contiguous_gradients` the gradients stay in place until they are copied. Another
`communication_data_type` than the model's adds a bucket in that type.

Every micro-step reduces the gradients. `reduce_scatter: true` is an all-reduce of each bucket, of which a
rank keeps its shard. If `use_multi_rank_bucket_allreduce` is false, each shard is reduced to its owner: half
the bytes, in W times as many messages. After the update, the weights of each group are all-gathered; with
gloo, in pieces of `allgather_bucket_size`.

In a ring, each rank sends 2 (W - 1) / W of the bytes of an all-reduced tensor, and (W - 1) / W of those of a
reduced or gathered tensor. One link of the ring leaves each node, so a node sends as much as a rank.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from aqtopo.config import RunConfig

ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
PASSES = {"all-reduce": 2, "reduce": 1, "all-gather": 1}
"""Number of times that a ring sends each byte around."""


@dataclass(frozen=True)
class StateBytes:
    """Permanent state of one rank [bytes].

    Attributes:
        parameters: model weights, on the device.
        gradients: shard of the accumulated gradient.
        master_weights: shard of the fp32 weights.
        moments: shard of the two AdamW moments.
        offloaded: all but the parameters are in host memory.
    """

    parameters: int
    gradients: int
    master_weights: int
    moments: int
    offloaded: bool

    @property
    def device(self) -> int:
        """Bytes on the device."""
        return self.parameters + (0 if self.offloaded else self._sharded)

    @property
    def host(self) -> int:
        """Bytes in host memory, with `offload_optimizer`."""
        return self._sharded if self.offloaded else 0

    @property
    def _sharded(self) -> int:
        return self.gradients + self.master_weights + self.moments


def state_bytes(elements: Mapping[str, int], config: RunConfig) -> StateBytes:
    """Compute the permanent state of one rank from the number of parameters by group."""
    padded = _padded(elements, config.world_size)
    shard = padded // config.world_size
    model_type = config.deepspeed.precision
    offload = config.deepspeed.zero_optimization.offload_optimizer
    offloaded = offload is not None and offload.device == "cpu"
    gradient_type = "fp32" if offloaded else config.deepspeed.accumulation_type
    return StateBytes(
        parameters=ELEMENT_BYTES[model_type] * padded,
        gradients=ELEMENT_BYTES[gradient_type] * shard,
        master_weights=4 * shard,
        moments=8 * shard,
        offloaded=offloaded,
    )


def _padded(elements: Mapping[str, int], world: int) -> int:
    """Return the number of elements of all groups with padding.

    nccl_start_alignment_factor = 2: every shard starts on a 4-byte boundary in 16-bit types.
    """
    return sum(math.ceil(count / (2 * world)) * 2 * world for count in elements.values())


def workspace_bytes(config: RunConfig) -> int:
    """Return the bytes of the backward pass beyond the activations: a gradient of an MLP's hidden layer.

    It is allocated while all activations are alive. Later gradients replace freed activations; the four
    gradients of attention are a quarter as wide each.
    """
    element = ELEMENT_BYTES[config.deepspeed.precision]
    return element * config.micro_batch * config.tokens * config.model.hidden_dim


def reduction_bytes(parameters: int, config: RunConfig) -> int:
    """Return the bytes of the reduction buffers, which exist in the backward pass only."""
    zero = config.deepspeed.zero_optimization
    element, sent = ELEMENT_BYTES[config.deepspeed.precision], ELEMENT_BYTES[_sent_type(config)]
    bucket = min(parameters, zero.reduce_bucket_size)
    converted = sent * bucket if sent != element else 0
    if zero.contiguous_gradients:
        return converted + element * zero.reduce_bucket_size * (2 if zero.overlap_comm else 1)
    return converted + element * bucket * 2


def _sent_type(config: RunConfig) -> str:
    """Return the type in which the gradients are reduced."""
    return config.deepspeed.communication_data_type or config.deepspeed.precision


@dataclass(frozen=True)
class Collective:
    """Collective operation of a step.

    Attributes:
        name: content.
        kind: `all-reduce`, `reduce` or `all-gather`.
        size: bytes of the whole tensors of one call.
        times: calls per step.
        messages: messages per call.
    """

    name: str
    kind: str
    size: int
    times: int
    messages: int

    def sent(self, world: int) -> float:
        """Return the bytes that each of `world` ranks in a ring sends per step."""
        return PASSES[self.kind] * (world - 1) / world * self.size * self.times

    def hops(self, world: int) -> int:
        """Return the number of consecutive messages between ranks per step."""
        return PASSES[self.kind] * (world - 1) * self.messages * self.times


def step_collectives(elements: Mapping[str, int], config: RunConfig, micro_steps: int) -> list[Collective]:
    """Return the collectives of a step of some micro-steps, without those of single numbers."""
    zero, world = config.deepspeed.zero_optimization, config.world_size
    element = ELEMENT_BYTES[config.deepspeed.precision]
    gradients = ELEMENT_BYTES[_sent_type(config)] * sum(elements.values())
    buckets = math.ceil(sum(elements.values()) / zero.reduce_bucket_size)
    owned = zero.reduce_scatter and not zero.use_multi_rank_bucket_allreduce
    kind, messages = ("reduce", world) if owned else ("all-reduce", buckets)
    return [
        Collective("gradients", kind, gradients, micro_steps, messages),
        Collective("weights", "all-gather", element * _padded(elements, world), 1, len(elements)),
    ]
