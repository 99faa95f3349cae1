"""Model of the duration of a step on a machine, and its scaling with the number of nodes."""

from dataclasses import dataclass

from aqtopo.config import RunConfig
from aqtopo.planning.node_types import NodeType
from aqtopo.planning.plan import Plan
from aqtopo.planning.zero import Collective, step_collectives

NODES = (1, 2, 4, 8, 16, 32, 50, 64, 128, 256, 512, 1024)
"""Rows of the scaling table."""

OPTIMIZER_PASSES = 10
"""fp32 reads and writes of a shard by AdamW with clipping: gradient 3, weights 3, moments 4."""


UTILIZATION = 0.4
"""Assumed share of the matrix units' peak in a forward and backward pass."""

NETWORK_SHARE = 0.8
"""Assumed share of a network's bandwidth in a large collective."""

HOP_S = 3e-6
"""Assumed latency of a message between ranks [s]."""


@dataclass(frozen=True)
class StepTime:
    """Duration of a step by part, at one number of nodes.

    Attributes:
        world: number of ranks.
        compute_s: forward and backward passes of all micro-steps.
        reduce_s: reduction of the gradients.
        hidden_s: part of the reduction that overlaps the backward pass.
        gather_s: all-gather of the weights.
        node_bytes: data that a node reads [bytes].
    """

    nodes: int
    world: int
    compute_s: float
    reduce_s: float
    hidden_s: float
    gather_s: float
    optimizer_s: float
    node_bytes: int
    samples: int

    @property
    def seconds(self) -> float:
        """Duration of the step."""
        return self.compute_s + self.reduce_s - self.hidden_s + self.gather_s + self.optimizer_s

    @property
    def samples_per_s(self) -> float:
        """Training samples per second of all ranks."""
        return self.samples / self.seconds

    @property
    def loader_rate(self) -> float:
        """Rate at which a node must read [bytes/s]."""
        return self.node_bytes / self.seconds


def step_time(plan: Plan, node_type: NodeType, nodes: int, utilization: float = UTILIZATION) -> StepTime:
    """Model a step at fixed micro-batch and accumulation: the batch grows with the number of nodes."""
    training = plan.config.training.model_copy(update={"nodes": nodes})
    config = plan.config.model_copy(update={"training": training})
    world = config.world_size
    elements = {name: group.parameters for name, group in plan.groups.items()}
    gradients, weights = step_collectives(elements, config, config.accumulation)
    flop = plan.flop
    rates = [utilization * node_type.flops[name] for name in (config.deepspeed.precision, "fp32")]
    backward_s = config.accumulation * flop.backward_s(*rates)
    compute_s = config.accumulation * flop.forward_s(*rates) + backward_s
    bandwidth = NETWORK_SHARE * node_type.ring_bandwidth(nodes, training.ranks_per_node)
    reduce_s, gather_s = (
        collective.sent(world) / bandwidth + collective.hops(world) * HOP_S
        for collective in (gradients, weights)
    )
    shard = sum(elements.values()) / world
    return StepTime(
        nodes=nodes,
        world=world,
        compute_s=compute_s,
        reduce_s=reduce_s,
        hidden_s=_hidden(reduce_s, gradients, backward_s, config),
        gather_s=gather_s,
        optimizer_s=OPTIMIZER_PASSES * 4 * shard / node_type.memory_rate,
        node_bytes=config.train_batch // nodes * sample_bytes(config, plan.calendar.channels),
        samples=config.train_batch,
    )


def _hidden(reduce_s: float, gradients: Collective, backward_s: float, config: RunConfig) -> float:
    """Return the overlapped duration [s]: all buckets but the last, at most that of the backward pass."""
    if not config.deepspeed.zero_optimization.overlap_comm:
        return 0.0
    overlapped = reduce_s * (gradients.messages - 1) / gradients.messages
    return min(overlapped, backward_s)


def sample_bytes(config: RunConfig, channels: int) -> int:
    """Return the bytes read per sample: its hour and its targets', each with all channels of the store."""
    rows, columns = config.data.grid
    hours = 2 if config.model.lead_time == "encoder" else 1 + len(config.data.horizons)
    return 4 * channels * rows * columns * hours


def scaling(plan: Plan, node_type: NodeType, utilization: float = UTILIZATION) -> list[StepTime]:
    """Return the step at each number of nodes."""
    return [step_time(plan, node_type, nodes, utilization) for nodes in NODES]


def efficiency(time: StepTime, one_node: StepTime) -> float:
    """Return samples/s per node relative to a single node."""
    return time.samples_per_s / time.nodes / (one_node.samples_per_s / one_node.nodes)
