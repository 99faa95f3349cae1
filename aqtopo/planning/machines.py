"""Nodes that a plan can model: known accelerators, and machines described in a JSON file."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from aqtopo.config.record import read_record
from aqtopo.config.strict import Positive, Strict
from aqtopo.planning.node_types import NODE_TYPES, NodeType

Rate = Annotated[float, Field(gt=0)]


class Peaks(Strict):
    """Peak of the matrix units by precision [TFLOP/s], without sparsity."""

    fp32: Rate
    """Single precision."""
    bf16: Rate
    """bfloat16."""
    fp16: Rate
    """float16."""


class Machine(Strict):
    """Description of a machine, in the units of data sheets (1 GB = 1e9 bytes)."""

    name: Annotated[str, Field(min_length=1)]
    """Name in the tables."""
    gpus_per_node: Positive
    """Accelerators of a node that are used as a rank each."""
    memory_gb: Rate
    """Memory of an accelerator [GB]."""
    tflops: Peaks
    """Peaks of an accelerator."""
    memory_tb_s: Rate
    """Memory bandwidth of an accelerator [TB/s]."""
    node_network_gb_s: Rate
    """Bandwidth of a node to the others, in one direction [GB/s]; a port of 200 Gb/s has 25."""
    inside_network_gb_s: Rate
    """Bandwidth of an accelerator to the others of its node, in one direction [GB/s]."""
    storage_gb_s: Rate
    """Bandwidth of the file system for all nodes together [GB/s]."""


def find_node_type(name: str | None, ranks_per_node: int) -> NodeType | None:
    """Return a known accelerator, or the machine in a JSON file; None for None.

    Raises:
        ValueError: the accelerator is unknown, or the file is invalid or has fewer accelerators per node.
    """
    if name is None:
        return None
    if name in NODE_TYPES:
        return NODE_TYPES[name]
    if not name.endswith(".json"):
        raise ValueError(
            f"--gpu {name} is unknown. Choose {', '.join(NODE_TYPES)}, or describe the machine in a file: "
            "--gpu FILE.json (docs/clusters.md)."
        )
    machine = read_record(Path(name), Machine, "docs/clusters.md describes the file of a machine.")
    if ranks_per_node > machine.gpus_per_node:
        raise ValueError(
            f"training.ranks_per_node = {ranks_per_node}, but a node of {machine.name} has "
            f"{machine.gpus_per_node} accelerators ({name}). Plan with --set training.ranks_per_node="
            f"{machine.gpus_per_node}."
        )
    return NodeType(
        machine.name,
        machine.memory_gb * 1e9,
        {precision: 1e12 * peak for precision, peak in machine.tflops},
        machine.memory_tb_s * 1e12,
        machine.node_network_gb_s * 1e9 / ranks_per_node,
        machine.inside_network_gb_s * 1e9,
        machine.storage_gb_s * 1e9,
    )
