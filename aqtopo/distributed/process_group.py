"""Process group and collectives."""

import warnings
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from aqtopo.distributed.device import select_device
from aqtopo.distributed.launch import Launch, export_launch, read_launch
from aqtopo.distributed.rank_group import SINGLE_RANK, RankGroup

COLLECTIVE_TIMEOUT_S = 1800.0
"""Default timeout of a collective [s]."""


def connect(launch: Launch, timeout_s: float = COLLECTIVE_TIMEOUT_S) -> torch.device:
    """Join the process group and return this rank's device.

    The watchdog's deadlines are shorter than `timeout_s`, the timeout of collectives [s].
    """
    device = select_device(launch)
    export_launch(launch)
    import deepspeed.ops  # after DS_ACCELERATOR is set, which is read at import
    from deepspeed import init_distributed
    from deepspeed.utils.logging import set_log_level_from_string

    set_log_level_from_string("warning")
    # DeepSpeed 0.19 calls a deprecated function.
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor.*", category=FutureWarning)
    # On a CPU, DeepSpeed compiles a shared-memory collective for inference. It costs up to a minute at the
    # first start, and 66 MiB in /dev/shm for each rank.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if device.type == "cuda" else "gloo"
    init_distributed(dist_backend=backend, verbose=False, timeout=timedelta(seconds=timeout_s))
    # Before this barrier all ranks only read; after it, rank 0 may write.
    barrier()
    return device


def join() -> RankGroup:
    """Connect to the other processes of a command; a single process creates no process group."""
    launch = read_launch()
    if launch.size == 1:
        return SINGLE_RANK
    return TorchRanks(launch.rank, launch.size, connect(launch))


def disconnect() -> None:
    """Leave the process group, if this process has joined one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for all ranks."""
    dist.barrier()


def largest(value: int, device: torch.device) -> int:
    """Return the maximum over all ranks."""
    values = torch.tensor([value], device=device)
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return int(values)


def total(values: torch.Tensor) -> torch.Tensor:
    """Sum `values` over all ranks, in place, and return them."""
    dist.all_reduce(values, op=dist.ReduceOp.SUM)
    return values


@dataclass(frozen=True)
class TorchRanks:
    """`RankGroup` of all ranks, on the process group; `device` holds the tensors in collectives."""

    rank: int
    size: int
    device: torch.device

    def barrier(self) -> None:
        """Wait for all ranks."""
        barrier()

    def gather_texts(self, text: str) -> list[str]:
        """Return the texts of all ranks, in rank order."""
        return gather_texts(text)

    def gather_parts(self, part: torch.Tensor) -> torch.Tensor:
        """Concatenate equally long parts of all ranks, in rank order; the result is in host memory."""
        whole = torch.empty(self.size * part.numel(), dtype=part.dtype, device=self.device)
        dist.all_gather_into_tensor(whole, part.to(self.device))
        return whole.cpu()

    def all_reduce_sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum values over all ranks, element by element; the result is in host memory."""
        return total(values.to(self.device)).cpu()


def gather_texts(text: str) -> list[str]:
    """Return the texts of all ranks, in rank order."""
    texts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(texts, text)
    return [str(item) for item in texts]
