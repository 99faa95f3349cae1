"""Bytes that DeepSpeed's ZeRO stage 2 sends in a step: a reading of its code, collective by collective.

Read in DeepSpeed 0.19.8, `runtime/zero/stage_1_and_2.py` and `runtime/utils.py`:

- gradients are reduced in every micro-step. `reduce_scatter: true` is an all-reduce of each bucket, of which
  a rank keeps its part, unless `use_multi_rank_bucket_allreduce` is false; then each part is reduced to its
  owner, for half the bytes in W times as many messages.
- after the update, the weights of each group are gathered from all ranks.

A ring sends, from each rank, 2 (W - 1) / W of an all-reduced tensor's bytes, and (W - 1) / W of a reduced or
gathered one's. A ring through all ranks crosses each node's border once, so that is what a node sends too.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from aqtopo.config import RunConfig
from aqtopo.planning.memory import ELEMENT_BYTES

PASSES = {"all-reduce": 2, "reduce": 1, "all-gather": 1}
"""How often a ring carries each byte around."""


@dataclass(frozen=True)
class Collective:
    """One collective of a step.

    Attributes:
        name: what it carries.
        kind: `all-reduce`, `reduce` or `all-gather`.
        size: bytes of the whole tensors of one time [bytes].
        times: how often in a step.
        messages: calls of one time.
    """

    name: str
    kind: str
    size: int
    times: int
    messages: int

    def sent(self, world: int) -> float:
        """Bytes that each rank sends in a step, through a ring of `world` ranks."""
        return PASSES[self.kind] * (world - 1) / world * self.size * self.times

    def hops(self, world: int) -> int:
        """Messages from rank to rank that follow one another in a step."""
        return PASSES[self.kind] * (world - 1) * self.messages * self.times


def step_collectives(elements: Mapping[str, int], config: RunConfig, micro_steps: int) -> list[Collective]:
    """The collectives of one step, without those of single numbers.

    Args:
        elements: parameters by group.
        config: precision and the `deepspeed` block; its world size pads the groups.
        micro_steps: in the step.
    """
    zero, world = config.deepspeed.zero_optimization, config.world_size
    element = ELEMENT_BYTES[config.deepspeed.precision]
    gradients = element * sum(elements.values())
    buckets = math.ceil(sum(elements.values()) / zero.reduce_bucket_size)
    owned = zero.reduce_scatter and not zero.use_multi_rank_bucket_allreduce
    padded = sum(math.ceil(count / (2 * world)) * 2 * world for count in elements.values())
    kind, messages = ("reduce", world) if owned else ("all-reduce", buckets)
    return [
        Collective("gradients", kind, gradients, micro_steps, messages),
        Collective("weights", "all-gather", element * padded, 1, len(elements)),
    ]
