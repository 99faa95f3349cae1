"""What is assumed of machines: published peaks, and how much of them a run gets."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """A kind of node, as its maker describes it, per rank's accelerator where not said otherwise.

    Attributes:
        name: of the accelerator.
        ranks_per_node: accelerators a node.
        memory: device memory [bytes].
        flops: peak of the matrix units by precision [FLOP/s].
        memory_rate: device memory bandwidth [bytes/s].
        node_network: what a node can send [bytes/s].
        inside_network: what a rank can send to its neighbour on the node [bytes/s].
        storage: what the file system gives to all nodes together [bytes/s].
    """

    name: str
    ranks_per_node: int
    memory: float
    flops: dict[str, float]
    memory_rate: float
    node_network: float
    inside_network: float
    storage: float

    def narrowest(self, nodes: int) -> float:
        """What a ring over the ranks of some nodes gets through [bytes/s]: it passes the links inside too."""
        return self.inside_network if nodes == 1 else min(self.inside_network, self.node_network)


MACHINES = {
    # One die of an MI250X (half of AMD's data sheet: 95.7 and 383 TFLOP/s, 3.2 TB/s, 128 GB), LUMI-G's node
    # with four 200 Gb/s Slingshot ports, one 50 GB/s link between neighbouring dies, LUMI-P's 240 GB/s.
    "mi250x": Machine(
        "mi250x", 8, 64e9, {"fp32": 47.9e12, "bf16": 191.5e12, "fp16": 191.5e12}, 1.6e12, 100e9, 50e9, 240e9
    ),
    # An H100 SXM (NVIDIA's data sheet, dense; fp32 on the vector units), eight a node with eight 400 Gb/s
    # ports and NVLink; storage as above, for want of a machine.
    "h100": Machine(
        "h100", 8, 80e9, {"fp32": 67e12, "bf16": 989e12, "fp16": 989e12}, 3.35e12, 400e9, 450e9, 240e9
    ),
}


def machine_named(name: str | None) -> Machine | None:
    """The machine of that name; None for none.

    Raises:
        ValueError: nothing is known of it.
    """
    if name is not None and name not in MACHINES:
        raise ValueError(f"--gpu {name}: nothing is known of it. Choose {' or '.join(MACHINES)}.")
    return None if name is None else MACHINES[name]


@dataclass(frozen=True)
class Assumptions:
    """What is not measured: a plan names every one of these.

    Attributes:
        utilization: share of the matrix units' peak that a whole forward and backward pass reaches.
        network_share: share of a network's bandwidth that a large collective reaches.
        hop_s: time a message takes from rank to rank [s].
    """

    utilization: float = 0.4
    network_share: float = 0.8
    hop_s: float = 3e-6
