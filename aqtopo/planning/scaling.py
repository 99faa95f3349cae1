"""Model of the duration of a step on a machine, and its scaling with the number of nodes."""

from dataclasses import dataclass

from aqtopo.config import RunConfig
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
class NodeType:
    """Type of node, from data sheets; per rank unless stated otherwise.

    Attributes:
        ranks_per_node: accelerators per node.
        memory: device memory [bytes].
        flops: peak of the matrix units by precision [FLOP/s].
        memory_rate: device memory bandwidth [bytes/s].
        node_network: bandwidth of a node's network [bytes/s].
        inside_network: bandwidth between neighbouring ranks of a node [bytes/s].
        storage: bandwidth of the file system for all nodes together [bytes/s].
    """

    name: str
    ranks_per_node: int
    memory: float
    flops: dict[str, float]
    memory_rate: float
    node_network: float
    inside_network: float
    storage: float

    def ring_bandwidth(self, nodes: int) -> float:
        """Return the bandwidth of the slowest link of a ring over the ranks of `nodes` nodes [bytes/s]."""
        return self.inside_network if nodes == 1 else min(self.inside_network, self.node_network)


NODE_TYPES = {
    # One die of an MI250X (half of AMD's data sheet: 95.7 and 383 TFLOP/s, 3.2 TB/s, 128 GB); LUMI-G: four
    # 200 Gb/s Slingshot ports per node, 50 GB/s between neighbouring dies; LUMI-P: 240 GB/s.
    "mi250x": NodeType(
        "mi250x", 8, 64e9, {"fp32": 47.9e12, "bf16": 191.5e12, "fp16": 191.5e12}, 1.6e12, 100e9, 50e9, 240e9
    ),
    # H100 SXM (NVIDIA's data sheet, dense; fp32 on the vector units), eight per node, eight 400 Gb/s ports,
    # NVLink; storage assumed as above.
    "h100": NodeType(
        "h100", 8, 80e9, {"fp32": 67e12, "bf16": 989e12, "fp16": 989e12}, 3.35e12, 400e9, 450e9, 240e9
    ),
}


def find_node_type(name: str | None) -> NodeType | None:
    """Return the node type of an accelerator; None for None.

    Raises:
        ValueError: the accelerator is unknown.
    """
    if name is not None and name not in NODE_TYPES:
        raise ValueError(f"--gpu {name} is unknown. Choose {' or '.join(NODE_TYPES)}.")
    return None if name is None else NODE_TYPES[name]


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
    config, world = plan.config, nodes * node_type.ranks_per_node
    training = config.training.model_copy(update={"nodes": nodes, "ranks_per_node": node_type.ranks_per_node})
    config = config.model_copy(update={"training": training})
    elements = {name: group.parameters for name, group in plan.groups.items()}
    gradients, weights = step_collectives(elements, config, config.accumulation)
    flop = plan.flop
    rates = [utilization * node_type.flops[name] for name in (config.deepspeed.precision, "fp32")]
    backward_s = config.accumulation * flop.backward_s(*rates)
    compute_s = config.accumulation * flop.forward_s(*rates) + backward_s
    bandwidth = NETWORK_SHARE * node_type.ring_bandwidth(nodes)
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
