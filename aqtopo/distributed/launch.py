"""Rank, world size and address of this process, from the variables of its launcher.

`deepspeed` and `torchrun` set RANK and related variables, `srun` sets SLURM_*; without either, the process is
rank 0 of 1.
"""

import contextlib
import os
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """One process of a run, as its launcher describes it.

    Attributes:
        launcher: `torch` (deepspeed and torchrun set the same variables), `slurm` or `alone`.
        rank: rank among all processes.
        local_rank: rank on its node.
        size: processes of the run.
        local_size: processes on this node.
        master_addr: host of rank 0.
        master_port: port of rank 0; 0 selects a free port.
    """

    launcher: str
    rank: int
    local_rank: int
    size: int
    local_size: int
    master_addr: str
    master_port: int

    @property
    def is_main(self) -> bool:
        """True on rank 0, which writes the files and the console."""
        return self.rank == 0

    def example(self, nodes: int, ranks_per_node: int, arguments: str = "...") -> str:
        """Return a command that starts `aqtopo ARGUMENTS` on this many processes with the same launcher."""
        if self.launcher == "slurm" or nodes > 1:
            return f"srun --nodes={nodes} --ntasks-per-node={ranks_per_node} aqtopo {arguments}"
        if ranks_per_node == 1:
            return f"aqtopo {arguments}"
        return f"deepspeed --num_gpus {ranks_per_node} --module aqtopo {arguments}"


def read_launch(environ: Mapping[str, str] = os.environ) -> Launch:
    """Read the launcher's variables.

    Raises:
        ValueError: they are incomplete.
    """
    if "RANK" in environ:
        return _read_torch_launch(environ)
    if "SLURM_PROCID" in environ and "SLURM_STEP_ID" in environ:
        return _read_slurm_launch(environ)
    return Launch("alone", 0, 0, 1, 1, "127.0.0.1", 0)


def export_launch(launch: Launch) -> None:
    """Export the variables that DeepSpeed and PyTorch read; without them DeepSpeed looks for MPI."""
    os.environ.update(
        RANK=str(launch.rank),
        LOCAL_RANK=str(launch.local_rank),
        WORLD_SIZE=str(launch.size),
        LOCAL_SIZE=str(launch.local_size),
        MASTER_ADDR=launch.master_addr,
        MASTER_PORT=str(launch.master_port or free_port()),
    )


@contextlib.contextmanager
def restored_environment() -> Iterator[None]:
    """Undo changes of the environment; programs started later would inherit this run's rank and port."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def free_port() -> int:
    """Return a TCP port of this host that no process uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _read_torch_launch(environ: Mapping[str, str]) -> Launch:
    missing = [
        name for name in ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environ
    ]
    if missing:
        raise ValueError(
            f"RANK = {environ['RANK']} is set but {', '.join(missing)} is not. Start the program with "
            "`deepspeed`, `torchrun` or `srun`, or unset RANK to run alone."
        )
    size = _integer(environ, "WORLD_SIZE")
    local = next((name for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE") if name in environ), "WORLD_SIZE")
    return Launch(
        "torch",
        _integer(environ, "RANK"),
        _integer(environ, "LOCAL_RANK"),
        size,
        _integer(environ, local),
        environ["MASTER_ADDR"],
        _integer(environ, "MASTER_PORT"),
    )


def _integer(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    """Return a variable as a number; raise ValueError if it is not one, or is missing without a default."""
    text = environ.get(name, "" if default is None else str(default))
    if not text.isdigit():
        raise ValueError(
            f"the environment variable {name} = {text!r} is not a number. Start the program with "
            "`deepspeed`, `torchrun` or `srun`, or unset RANK and SLURM_PROCID to run alone."
        )
    return int(text)


def _read_slurm_launch(environ: Mapping[str, str]) -> Launch:
    """Read Slurm's variables; they contain no address and no port of rank 0."""
    size = _integer(environ, "SLURM_STEP_NUM_TASKS")
    nodes = _integer(environ, "SLURM_STEP_NUM_NODES", 1)
    node = _integer(environ, "SLURM_NODEID", 0)
    if nodes > 1 and "MASTER_ADDR" not in environ:
        raise ValueError(
            f"srun started {size} tasks on {nodes} nodes, but MASTER_ADDR is not set. Export in the batch "
            'script: MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
        )
    # Jobs that share a node need different ports, below the kernel's ephemeral range (from 32768).
    default_port = 20000 + _integer(environ, "SLURM_JOB_ID") % 12000
    return Launch(
        "slurm",
        _integer(environ, "SLURM_PROCID"),
        _integer(environ, "SLURM_LOCALID"),
        size,
        _tasks_per_node(environ.get("SLURM_STEP_TASKS_PER_NODE", str(size)))[node],
        environ.get("MASTER_ADDR", "127.0.0.1"),
        _integer(environ, "MASTER_PORT", default_port),
    )


def _tasks_per_node(text: str) -> list[int]:
    """Expand Slurm's run-length encoding: `8(x2),4` is 8, 8, 4."""
    runs = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(tasks) for tasks, times in runs for _ in range(int(times or 1))]
