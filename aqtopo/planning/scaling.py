"""Expected time of a step on a machine, and how it changes with the number of nodes. All of it is a model."""

from collections.abc import Sequence
from dataclasses import dataclass

from aqtopo.config import RunConfig
from aqtopo.planning.hardware import Assumptions, Machine
from aqtopo.planning.plan import Plan
from aqtopo.planning.traffic import Collective, step_collectives
from aqtopo.variables import DYNAMIC_VARIABLES

NODES = (1, 2, 4, 8, 16, 32, 50, 64, 128, 256, 512, 1024)
"""Rows of the scaling table."""

OPTIMIZER_PASSES = 10
"""Times that AdamW with clipping reads or writes its shard in fp32: gradient 3, weights 3, moments 4."""


@dataclass(frozen=True)
class StepTime:
    """Where the time of a step goes, at one number of nodes.

    Attributes:
        nodes: how many.
        world: ranks.
        compute_s: forward and backward passes of all micro-steps.
        reduce_s: reduction of the gradients.
        hidden_s: of that, what runs beside the backward pass.
        gather_s: gathering of the weights.
        optimizer_s: the update.
        loader_rate: bytes a node reads to keep up [bytes/s].
        samples: of a step.
    """

    nodes: int
    world: int
    compute_s: float
    reduce_s: float
    hidden_s: float
    gather_s: float
    optimizer_s: float
    loader_rate: float
    samples: int

    @property
    def seconds(self) -> float:
        """The whole step."""
        return self.compute_s + self.reduce_s - self.hidden_s + self.gather_s + self.optimizer_s

    @property
    def samples_per_s(self) -> float:
        """Training samples a second, all ranks together."""
        return self.samples / self.seconds


def step_time(plan: Plan, machine: Machine, nodes: int, assumptions: Assumptions) -> StepTime:
    """Model a step on so many nodes, micro-batch and accumulation as configured: the batch grows with them.

    Args:
        plan: the run.
        machine: its nodes.
        nodes: how many of them.
        assumptions: what is not known.
    """
    config, world = plan.config, nodes * machine.ranks_per_node
    training = config.training.model_copy(update={"nodes": nodes, "ranks_per_node": machine.ranks_per_node})
    config = config.model_copy(update={"training": training})
    elements = {name: group.parameters for name, group in plan.groups.items()}
    gradients, weights = step_collectives(elements, config, config.accumulation)
    arithmetic = plan.arithmetic
    rates = [assumptions.utilization * machine.flops[name] for name in (config.deepspeed.precision, "fp32")]
    backward_s = config.accumulation * arithmetic.backward_s(*rates)
    compute_s = config.accumulation * arithmetic.forward_s(*rates) + backward_s
    reduce_s = _duration(gradients, world, nodes, machine, assumptions)
    shard = sum(elements.values()) / world
    time = StepTime(
        nodes=nodes,
        world=world,
        compute_s=compute_s,
        reduce_s=reduce_s,
        hidden_s=_hidden(reduce_s, gradients, backward_s, config),
        gather_s=_duration(weights, world, nodes, machine, assumptions),
        optimizer_s=OPTIMIZER_PASSES * 4 * shard / machine.memory_rate,
        loader_rate=0.0,
        samples=config.train_batch,
    )
    read = config.micro_batch * config.accumulation * machine.ranks_per_node * sample_bytes(config)
    return StepTime(**{**time.__dict__, "loader_rate": read / time.seconds})


def _duration(
    collective: Collective, world: int, nodes: int, machine: Machine, assumptions: Assumptions
) -> float:
    """A ring's time: its bytes at the narrowest place, and its hops one after the other."""
    sent = collective.sent(world) / (assumptions.network_share * machine.narrowest(nodes))
    return sent + collective.hops(world) * assumptions.hop_s


def _hidden(reduce_s: float, gradients: Collective, backward_s: float, config: RunConfig) -> float:
    """With overlap, all buckets but the last of a micro-step run beside the backward pass, if it is long."""
    if not config.deepspeed.zero_optimization.overlap_comm:
        return 0.0
    behind = reduce_s * (gradients.messages - 1) / gradients.messages
    return min(behind, backward_s)


def sample_bytes(config: RunConfig) -> int:
    """Bytes that are read for one sample: its hour and its targets', each a whole chunk of all channels."""
    rows, columns = config.data.grid
    hours = 2 if config.model.lead_time == "encoder" else 1 + len(config.data.horizons)
    return 4 * len(DYNAMIC_VARIABLES) * rows * columns * hours


def scaling(
    plan: Plan, machine: Machine, assumptions: Assumptions, nodes: Sequence[int] = NODES
) -> list[StepTime]:
    """The step at each number of nodes."""
    return [step_time(plan, machine, count, assumptions) for count in nodes]


def efficiency(time: StepTime, one_node: StepTime) -> float:
    """Samples/s a node, as a share of those of a single node."""
    return time.samples_per_s / time.nodes / (one_node.samples_per_s / one_node.nodes)
