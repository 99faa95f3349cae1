"""Processes of a run: how they connect, their collectives, and the errors and work they share.

Functions take a `RankGroup`: `TorchRanks`, which uses torch.distributed, or `SINGLE_RANK` for one process.
Functions that need PyTorch import it, so that commands that read only names and sizes start faster.
"""

import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from aqtopo.distributed.launch import Launch, export_launch, read_launch, restored_environment
from aqtopo.refusal import RefusedError, raise_problems

if TYPE_CHECKING:
    from torch import Tensor, device

Item = TypeVar("Item")

COLLECTIVE_TIMEOUT_S = 1800.0
"""Default timeout of a collective [s]."""


class RankGroup(Protocol):
    """The processes that save, restore or score together."""

    @property
    def rank(self) -> int:
        """Index of this process."""

    @property
    def size(self) -> int:
        """Number of processes."""

    def barrier(self) -> None:
        """Wait for all ranks."""

    def gather_texts(self, text: str) -> list[str]:
        """Return the texts of all ranks, in rank order, on every rank."""

    def gather_parts(self, part: "Tensor") -> "Tensor":
        """Concatenate the parts of all ranks, which have equal length, on every rank."""

    def all_reduce_sum(self, values: "Tensor") -> "Tensor":
        """Return the element-wise sum over all ranks, on every rank."""


@dataclass(frozen=True)
class SingleRank:
    """A single process without a process group."""

    rank: int = 0
    size: int = 1

    def barrier(self) -> None:
        """No-op."""

    def gather_texts(self, text: str) -> list[str]:
        """Return a list of the one text."""
        return [text]

    def gather_parts(self, part: "Tensor") -> "Tensor":
        """Return the one part."""
        return part

    def all_reduce_sum(self, values: "Tensor") -> "Tensor":
        """Return the values unchanged."""
        return values


SINGLE_RANK = SingleRank()


@dataclass(frozen=True)
class TorchRanks:
    """`RankGroup` of all ranks, on the process group; `device` holds the tensors in collectives."""

    rank: int
    size: int
    device: "device"

    def barrier(self) -> None:
        """Wait for all ranks."""
        barrier()

    def gather_texts(self, text: str) -> list[str]:
        """Return the texts of all ranks, in rank order."""
        return gather_texts(text)

    def gather_parts(self, part: "Tensor") -> "Tensor":
        """Concatenate equally long parts of all ranks, in rank order; the result is in host memory."""
        from torch import distributed as dist

        whole = part.new_empty(self.size * part.numel(), device=self.device)
        dist.all_gather_into_tensor(whole, part.to(self.device))
        return whole.cpu()

    def all_reduce_sum(self, values: "Tensor") -> "Tensor":
        """Sum values over all ranks, element by element; the result is in host memory."""
        return total(values.to(self.device)).cpu()


def connect(launch: Launch, timeout_s: float = COLLECTIVE_TIMEOUT_S) -> "device":
    """Join the process group and return this rank's device.

    The watchdog's deadlines are shorter than `timeout_s`, the timeout of collectives [s].

    Raises:
        ValueError: DeepSpeed is not installed, or there is no such device.
    """
    from aqtopo.distributed.device import select_device

    require_deepspeed()
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
    if backend == "gloo":
        # With gloo, an all-gather into a tensor allocates its whole output once more and copies it. Otherwise
        # DeepSpeed gathers updated parameters in pieces of `allgather_bucket_size`, which reuse memory.
        deepspeed.comm.has_all_gather_into_tensor = lambda: False
    # Before this barrier all ranks only read; after it, rank 0 may write.
    barrier()
    return device


def require_deepspeed() -> None:
    """Check that DeepSpeed is installed; only training and what reads or writes its files need it.

    Raises:
        ValueError: it is not.
    """
    if find_spec("deepspeed") is None:
        raise ValueError(
            "Training, several processes and the optimizer's saved state need the package deepspeed, which "
            "is not installed. Install it with `pip install 'aqtopo[train]'`."
        )


def import_deepspeed_quietly() -> None:
    """Import DeepSpeed to read or write its files, without its warning that there is no GPU.

    Raises:
        ValueError: it is not installed.
    """
    import torch

    require_deepspeed()
    if "deepspeed" in sys.modules:
        return
    with restored_environment():
        if not torch.cuda.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # otherwise it prints the warning on stdout
        import deepspeed  # noqa: F401


def join() -> RankGroup:
    """Connect to the other processes of a command; a single process creates no process group."""
    launch = read_launch()
    if launch.size == 1:
        return SINGLE_RANK
    return TorchRanks(launch.rank, launch.size, connect(launch))


def disconnect() -> None:
    """Leave the process group, if this process has joined one."""
    from torch import distributed as dist

    if dist.is_initialized():
        from deepspeed import comm

        # DeepSpeed keeps groups that PyTorch does not know to be destroyed; a second training would use them.
        comm.destroy_process_group()


def barrier() -> None:
    """Wait for all ranks."""
    from torch import distributed as dist

    dist.barrier()


def largest(value: int, device: "device") -> int:
    """Return the maximum over all ranks."""
    import torch
    from torch import distributed as dist

    values = torch.tensor([value], device=device)
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return int(values)


def total(values: "Tensor") -> "Tensor":
    """Sum `values` over all ranks, in place, and return them."""
    from torch import distributed as dist

    dist.all_reduce(values, op=dist.ReduceOp.SUM)
    return values


def gather_texts(text: str) -> list[str]:
    """Return the texts of all ranks, in rank order."""
    from torch import distributed as dist

    texts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(texts, text)
    return [str(item) for item in texts]


def raise_problems_on_all_ranks(
    ranks: RankGroup,
    summary: str,
    problems: Sequence[str],
    remedy: str = "",
    kind: type[Exception] = RefusedError,
) -> None:
    """Raise the same error on every rank if any rank has problems; it lists those of all ranks.

    Raises:
        kind: a rank has a problem.
    """
    gathered = [json.loads(text) for text in ranks.gather_texts(json.dumps(list(problems)))]
    raise_problems(summary, sorted({problem for own in gathered for problem in own}), remedy, kind)


@contextmanager
def refusals_on_all_ranks(
    ranks: RankGroup,
    summary: str,
    errors: tuple[type[Exception], ...] = (RefusedError,),
    kind: type[Exception] = RefusedError,
) -> Iterator[None]:
    """Raise the errors of a block on every rank at its end, so that no rank skips a collective.

    Every rank runs the block, which must contain no collectives. `errors` are the classes that are caught.

    Raises:
        kind: the block failed on a rank.
    """
    problems = []
    try:
        yield
    except errors as error:
        problems = [str(error)]
    raise_problems_on_all_ranks(ranks, summary, problems, kind=kind)


def gather_mappings(own: Mapping[str, Any], ranks: RankGroup) -> dict[str, Any]:
    """Return the union of the ranks' mappings from names to JSON values, on every rank."""
    return {
        name: value
        for text in ranks.gather_texts(json.dumps(own))
        for name, value in json.loads(text).items()
    }


def shard(items: Sequence[Item], ranks: RankGroup) -> Sequence[Item]:
    """Return this rank's consecutive shard of `items`; shard lengths differ by at most one."""
    first, end = (len(items) * rank // ranks.size for rank in (ranks.rank, ranks.rank + 1))
    return items[first:end]


def shard_by_size(items: Sequence[Item], sizes: Sequence[int], ranks: RankGroup) -> list[Item]:
    """Return this rank's consecutive shard of `items`; its size is at most the mean plus the largest item.

    The total size is divided into equal intervals, one per rank. An item belongs to the interval that
    contains its middle.
    """
    total, before, own = max(sum(sizes), 1), 0, []
    for item, size in zip(items, sizes, strict=True):
        if (2 * before + size) * ranks.size // (2 * total) == ranks.rank:
            own.append(item)
        before += size
    return own
