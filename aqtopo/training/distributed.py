"""The only module that talks to torch.distributed: who we are, how we connect, what ranks agree on.

A process learns its rank from whatever started it: `deepspeed` and `torchrun` export RANK and its kin, `srun`
exports SLURM_* variables, and a program started alone is rank 0 of 1. All four go through the same code.
"""

import os
import re
import socket
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from aqtopo.checkpoint.ranks import ALONE, Ranks
from aqtopo.refusal import LostRankError

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""Longest wait in a collective; a rank that lags longer is taken for dead."""


GPUS_OF_JOB = frozenset({"SLURM_GPUS_ON_NODE", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS"})
"""Any of these says that Slurm gave the job GPUs."""

HIDING = frozenset({"ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"})
"""Variables that hide GPUs from a process."""


@dataclass(frozen=True)
class Launch:
    """What the launcher told this process.

    Attributes:
        launcher: `torch` (deepspeed and torchrun set the same variables), `slurm` or `alone`.
        rank: this process among all.
        local_rank: this process on its node.
        size: processes of the run.
        local_size: processes on this node.
        master_addr: where rank 0 listens.
        master_port: its port; 0 lets a program started alone pick a free one.
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
        """Whether this process writes the files and the console."""
        return self.rank == 0

    def example(self, nodes: int, ranks_per_node: int) -> str:
        """How to start that many processes the way this one was started."""
        if self.launcher == "slurm" or nodes > 1:
            return f"srun --nodes={nodes} --ntasks-per-node={ranks_per_node} aqtopo train ..."
        return f"deepspeed --num_gpus {ranks_per_node} --module aqtopo train ..."


def read_launch(environ: Mapping[str, str] = os.environ) -> Launch:
    """Find out how this process was started.

    Raises:
        ValueError: the launcher's variables are incomplete.
    """
    if "RANK" in environ:
        return _read_torch_launch(environ)
    if "SLURM_PROCID" in environ and "SLURM_STEP_ID" in environ:
        return _read_slurm_launch(environ)
    return Launch("alone", 0, 0, 1, 1, "127.0.0.1", 0)


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
    """A launcher's variable as a number.

    Raises:
        ValueError: it is missing, without a default, or no number.
    """
    text = environ.get(name, "" if default is None else str(default))
    if not text.isdigit():
        raise ValueError(
            f"the environment variable {name} must be a number and is {text!r}. Start the program with "
            "`deepspeed`, `torchrun` or `srun`, or unset RANK and SLURM_PROCID to run alone."
        )
    return int(text)


def _read_slurm_launch(environ: Mapping[str, str]) -> Launch:
    """Map Slurm's own variables, which carry neither an address nor a port of rank 0."""
    size = _integer(environ, "SLURM_STEP_NUM_TASKS")
    nodes = _integer(environ, "SLURM_STEP_NUM_NODES", 1)
    node = _integer(environ, "SLURM_NODEID", 0)
    if nodes > 1 and "MASTER_ADDR" not in environ:
        raise ValueError(
            f"srun started {size} tasks on {nodes} nodes, but MASTER_ADDR is not set. Export in the batch "
            'script: MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
        )
    # One port a job, so that two jobs sharing a node do not meet; below those that the kernel hands out.
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
    """Expand Slurm's run-length form: `8(x2),4` is 8, 8, 4."""
    runs = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(tasks) for tasks, times in runs for _ in range(int(times or 1))]


def select_device(launch: Launch) -> torch.device:
    """This rank's device: what DS_ACCELERATOR says, else a GPU where there is one.

    DeepSpeed reads the same variable when it is first imported.
    """
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if "DS_ACCELERATOR" not in os.environ and not visible and GPUS_OF_JOB & os.environ.keys():
        raise ValueError(
            f"{socket.gethostname()}: the job has GPUs, but PyTorch sees none of them. Look at the driver, "
            "at PyTorch's build (ROCm or CUDA) and at the *_VISIBLE_DEVICES variables; to train on the CPU, "
            "export DS_ACCELERATOR=cpu."
        )
    kind = os.environ.setdefault("DS_ACCELERATOR", "cuda" if visible else "cpu")
    if kind == "cuda":  # ROCm counts as cuda
        index = _gpu_of(launch, visible, os.environ)
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    if kind != "cpu":
        raise ValueError(f"DS_ACCELERATOR = {kind}: aqtopo runs on cuda (ROCm counts as that) and cpu.")
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // launch.local_size))
    return torch.device("cpu")


class Board:
    """Some words of every rank, kept by rank 0 (under `torchrun`: by its agent), that all ranks can read.

    It has a connection of its own: a rank that hangs in a collective can still be asked about. Calls may
    raise LostRankError when the keeper is gone.

    Args:
        launch: who this process is.
        patience_s: how long the keeper may take to answer.
    """

    def __init__(self, launch: Launch, patience_s: float) -> None:
        self.rank, self.size = launch.rank, launch.size
        keeper = launch.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        where = launch.master_addr, int(os.environ["MASTER_PORT"])
        try:
            # multi_tenant: the process group finds its own store at the same port.
            store = dist.TCPStore(  # type: ignore[attr-defined]
                *where,
                is_master=keeper,
                timeout=timedelta(seconds=patience_s),
                wait_for_workers=False,
                multi_tenant=True,
            )
        except dist.DistError as error:
            doing = "could not listen at" if keeper else f"waited {patience_s:.0f} s for rank 0 at"
            raise LostRankError(
                f"rank {launch.rank} on {socket.gethostname()} {doing} {where[0]}:{where[1]} in vain "
                f"({str(error).splitlines()[0]}). MASTER_ADDR must be rank 0's host, MASTER_PORT be free."
            ) from error
        self._store = dist.PrefixStore("board", store)  # type: ignore[attr-defined]

    def meet(self, deadline_s: float) -> None:
        """Wait until every rank is here.

        Raises:
            LostRankError: some are not, in time; names them.
        """
        host = socket.gethostname()
        self._store.set(f"here/{self.rank}", host)
        if self._store.add("met", 1) == self.size:
            self._store.set("all met", "")
        try:
            self._store.wait(["all met"], timedelta(seconds=deadline_s))
        except dist.DistError as error:
            missing = [str(rank) for rank in range(self.size) if not self._store.check([f"here/{rank}"])]
            raise LostRankError(
                f"after {deadline_s:.0f} s {len(missing)} of {self.size} ranks have not arrived: "
                f"{abridged(missing)}. Look at what their nodes wrote to the job's log."
            ) from error

    def write(self, text: str) -> None:
        """Put this rank's words up, in place of its last ones."""
        self._attempt(lambda: self._store.set(f"words/{self.rank}", text))

    def read(self, rank: int) -> str | None:
        """The words of a rank; None if it has none yet."""
        key = f"words/{rank}"
        known: bool = self._attempt(lambda: self._store.check([key]))
        return str(self._attempt(lambda: self._store.get(key)).decode()) if known else None

    def _attempt(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except (dist.DistError, RuntimeError) as error:
            raise LostRankError(
                f"rank 0 or its node does not answer ({str(error).splitlines()[0]})"
            ) from error


def abridged(names: Sequence[str], most: int = 16) -> str:
    """A list for a message, cut where it gets long."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def is_connection_error(error: BaseException | None) -> bool:
    """Whether an error is what a collective says when another rank is gone."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "NCCL"))
    )


def announce(launch: Launch) -> None:
    """Export what DeepSpeed and PyTorch read: without it DeepSpeed tries to discover MPI."""
    os.environ.update(
        RANK=str(launch.rank),
        LOCAL_RANK=str(launch.local_rank),
        WORLD_SIZE=str(launch.size),
        LOCAL_SIZE=str(launch.local_size),
        MASTER_ADDR=launch.master_addr,
        MASTER_PORT=str(launch.master_port or _free_port()),
    )


def _gpu_of(launch: Launch, visible: int, environ: Mapping[str, str]) -> int:
    """The index of this rank's GPU.

    Raises:
        ValueError: there are fewer GPUs than ranks on this node.
    """
    if visible == 1 and HIDING & environ.keys():
        return 0  # a wrapper shows each rank its own GPU only
    if visible < launch.local_size:
        raise ValueError(
            f"{socket.gethostname()}: {launch.local_size} ranks were started on this node, and {visible} "
            "GPU(s) are visible. Ask Slurm for as many GPUs as tasks (--gpus-per-node), or start fewer ranks."
        )
    return launch.local_rank


def connect(launch: Launch) -> torch.device:
    """Join the process group and return this rank's device."""
    device = select_device(launch)
    announce(launch)
    import deepspeed.ops  # after DS_ACCELERATOR is set: it decides at import
    from deepspeed import init_distributed
    from deepspeed.utils.logging import set_log_level_from_string

    set_log_level_from_string("warning")
    # DeepSpeed 0.19 still calls it by its old name; nothing a user could do about it.
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor.*", category=FutureWarning)
    # On a CPU DeepSpeed would compile a shared-memory collective that only its inference calls: up to a
    # minute at the first start, and 66 MiB that every rank of every run leaves in /dev/shm.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if device.type == "cuda" else "gloo"
    init_distributed(dist_backend=backend, verbose=False, timeout=COLLECTIVE_TIMEOUT)
    # Until here every rank only looked; behind this line rank 0 may write what slower ranks must not see yet.
    barrier()
    return device


def join() -> Ranks:
    """Connect to the other processes of a command that shares its work, if it was started with any.

    Alone it needs neither a process group nor DeepSpeed.
    """
    launch = read_launch()
    if launch.size == 1:
        return ALONE
    return World(launch.rank, launch.size, connect(launch))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def disconnect() -> None:
    """Leave the process group, if this process ever joined it."""
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every rank is here."""
    dist.barrier()


def total(values: torch.Tensor) -> torch.Tensor:
    """Sum `values` over all ranks, in place, and return them."""
    dist.all_reduce(values, op=dist.ReduceOp.SUM)
    return values


@dataclass(frozen=True)
class World:
    """All ranks of the run, for the parts below that need collectives and may not import this module.

    Attributes:
        rank: this process.
        size: how many there are.
        device: where collectives on tensors run.
    """

    rank: int
    size: int
    device: torch.device

    def barrier(self) -> None:
        """Wait for all ranks."""
        barrier()

    def gather_texts(self, text: str) -> list[str]:
        """Every rank's text, on every rank, in rank order."""
        return gather_texts(text)

    def gather_parts(self, part: torch.Tensor) -> torch.Tensor:
        """Every rank's equally long part, one after the other, in host memory on every rank."""
        whole = torch.empty(self.size * part.numel(), dtype=part.dtype, device=self.device)
        dist.all_gather_into_tensor(whole, part.to(self.device))
        return whole.cpu()

    def add_up(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of every rank's values, element by element, in host memory on every rank."""
        return total(values.to(self.device)).cpu()


def gather_texts(text: str) -> list[str]:
    """Every rank's text, on every rank, in rank order."""
    texts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(texts, text)
    return [str(item) for item in texts]
