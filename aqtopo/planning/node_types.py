"""Known accelerators and their nodes. This module needs only the standard library."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class NodeType:
    """Type of node, from data sheets; per rank unless stated otherwise.

    Attributes:
        memory: device memory [bytes].
        flops: peak of the matrix units by precision, dense [FLOP/s].
        memory_rate: device memory bandwidth [bytes/s].
        network: share of the node's network [bytes/s].
        inside_network: bandwidth to the other ranks of a node, in one direction [bytes/s].
        storage: bandwidth of the file system for all nodes together [bytes/s].
    """

    name: str
    memory: float
    flops: Mapping[str, float]
    memory_rate: float
    network: float
    inside_network: float
    storage: float = 240e9

    def ring_bandwidth(self, nodes: int, ranks_per_node: int) -> float:
        """Return the bandwidth of the slowest link of a ring over the ranks of `nodes` nodes [bytes/s]."""
        return self.inside_network if nodes == 1 else min(self.inside_network, ranks_per_node * self.network)


# Peaks are those of the data sheets without sparsity; fp32 is that of the vector units. NVLink and Infinity
# Fabric count in one direction, all links of a GPU together. The storage is that of LUMI-P, 240 GB/s.
_H100 = {"fp32": 67e12, "bf16": 989e12, "fp16": 989e12}
_MI300X = {"fp32": 163.4e12, "bf16": 1307.4e12, "fp16": 1307.4e12}
NODE_TYPES = {
    node_type.name: node_type
    for node_type in (
        # One die of an MI250X (half of AMD's data sheet: 95.7 and 383 TFLOP/s, 3.2 TB/s, 128 GB); LUMI-G:
        # four 200 Gb/s ports for eight dies, 50 GB/s between neighbouring dies.
        NodeType("mi250x", 64e9, {"fp32": 47.9e12, "bf16": 191.5e12, "fp16": 191.5e12}, 1.6e12, 12.5e9, 50e9),
        # AMD's data sheet of the MI300X: 192 GB, 5.3 TB/s, seven links of 64 GB/s; a 400 Gb/s port each.
        NodeType("mi300x", 192e9, _MI300X, 5.3e12, 50e9, 448e9),
        # NVIDIA's data sheet of the A100 80GB SXM: NVLink 600 GB/s both ways; DGX A100: a 200 Gb/s port each.
        NodeType("a100", 80e9, {"fp32": 19.5e12, "bf16": 312e12, "fp16": 312e12}, 2.039e12, 25e9, 300e9),
        # NVIDIA's data sheets of H100 SXM and H200 SXM: NVLink 900 GB/s both ways; DGX: a 400 Gb/s port each.
        NodeType("h100", 80e9, _H100, 3.35e12, 50e9, 450e9),
        NodeType("h200", 141e9, _H100, 4.8e12, 50e9, 450e9),
        # NVIDIA's data sheet of the GH200 with 96 GB; Alps and JUPITER: four per node, a 200 Gb/s port each.
        NodeType("gh200", 96e9, _H100, 4.0e12, 25e9, 450e9),
    )
}
