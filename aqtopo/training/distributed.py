"""The only module that talks to torch.distributed: how ranks connect, and what they agree on."""

import os
import socket
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from aqtopo.checkpoint.ranks import SINGLE_RANK, RankGroup
from aqtopo.refusal import LostRankError
from aqtopo.training.device import select_device
from aqtopo.training.launch import Launch, read_launch

COLLECTIVE_TIMEOUT_S = 1800.0
"""Longest wait in a collective where nothing else is asked for; a rank that lags longer is taken for dead."""


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

    def raise_alarm(self, text: str) -> str:
        """Say for all to read why the run ends, unless another rank was first; what stands there now."""
        return str(self._attempt(lambda: self._store.compare_set("alarm", "", text)).decode())

    def alarm(self) -> str | None:
        """Why the run ends, if some rank has said so."""
        raised: bool = self._attempt(lambda: self._store.check(["alarm"]))
        return str(self._attempt(lambda: self._store.get("alarm")).decode()) if raised else None

    def leave(self) -> None:
        """Say that this rank has no more to read here."""
        self._attempt(lambda: self._store.add("left", 1))

    def left(self) -> int:
        """How many ranks have said so."""
        return int(self._attempt(lambda: self._store.add("left", 0)))

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


def connect(launch: Launch, longest_wait_s: float = COLLECTIVE_TIMEOUT_S) -> torch.device:
    """Join the process group and return this rank's device.

    Args:
        launch: who this process is.
        longest_wait_s: how long a collective may wait for a rank; a watchdog with names for what ranks do
            should speak before.
    """
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
    init_distributed(dist_backend=backend, verbose=False, timeout=timedelta(seconds=longest_wait_s))
    # Until here every rank only looked; behind this line rank 0 may write what slower ranks must not see yet.
    barrier()
    return device


def join() -> RankGroup:
    """Connect to the other processes of a command that shares its work, if it was started with any.

    Alone it needs neither a process group nor DeepSpeed.
    """
    launch = read_launch()
    if launch.size == 1:
        return SINGLE_RANK
    return TorchRanks(launch.rank, launch.size, connect(launch))


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


def largest(value: int, device: torch.device) -> int:
    """The largest of all ranks' values."""
    values = torch.tensor([value], device=device)
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return int(values)


def total(values: torch.Tensor) -> torch.Tensor:
    """Sum `values` over all ranks, in place, and return them."""
    dist.all_reduce(values, op=dist.ReduceOp.SUM)
    return values


@dataclass(frozen=True)
class TorchRanks:
    """RankGroup of all ranks of the run, implemented with torch.distributed.

    Attributes:
        rank: index of this process.
        size: number of processes.
        device: device for collectives on tensors.
    """

    rank: int
    size: int
    device: torch.device

    def barrier(self) -> None:
        """Wait for all ranks."""
        barrier()

    def gather_texts(self, text: str) -> list[str]:
        """Return the texts of all ranks, in rank order, on every rank."""
        return gather_texts(text)

    def gather_parts(self, part: torch.Tensor) -> torch.Tensor:
        """Concatenate the parts of all ranks, which have equal length, in host memory on every rank."""
        whole = torch.empty(self.size * part.numel(), dtype=part.dtype, device=self.device)
        dist.all_gather_into_tensor(whole, part.to(self.device))
        return whole.cpu()

    def all_reduce_sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the element-wise sum over all ranks, in host memory on every rank."""
        return total(values.to(self.device)).cpu()


def gather_texts(text: str) -> list[str]:
    """Every rank's text, on every rank, in rank order."""
    texts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(texts, text)
    return [str(item) for item in texts]
