"""Heartbeats and the abort reason of all ranks, in a TCPStore that is independent of collectives."""

import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from aqtopo.distributed.launch import Launch
from aqtopo.refusal import LostRankError
from aqtopo.text import abridged


class HeartbeatStore:
    """Key-value store on rank 0 (with `torchrun`: in its agent) with one heartbeat per rank.

    It has its own connection, so other ranks can read the heartbeat of a rank that hangs in a collective. All
    methods raise LostRankError if the server does not answer within `timeout_s` [s].
    """

    def __init__(self, launch: Launch, timeout_s: float) -> None:
        self.rank, self.size = launch.rank, launch.size
        is_server = launch.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        address = launch.master_addr, int(os.environ["MASTER_PORT"])
        try:
            # multi_tenant: the process group opens its own store at the same port.
            store = dist.TCPStore(  # type: ignore[attr-defined]
                *address,
                is_master=is_server,
                timeout=timedelta(seconds=timeout_s),
                wait_for_workers=False,
                multi_tenant=True,
            )
        except dist.DistError as error:
            action = "cannot listen at" if is_server else f"cannot reach rank 0 within {timeout_s:.0f} s at"
            raise LostRankError(
                f"rank {launch.rank} on {socket.gethostname()} {action} {address[0]}:{address[1]} "
                f"({str(error).splitlines()[0]}). Set MASTER_ADDR to rank 0's host and MASTER_PORT to a free "
                "port."
            ) from error
        self._store = dist.PrefixStore("heartbeats", store)  # type: ignore[attr-defined]

    def wait_for_all_ranks(self, timeout_s: float) -> None:
        """Wait until all ranks have called this method.

        Raises:
            LostRankError: some ranks did not arrive in time; the message names them.
        """
        self._store.set(f"arrived/{self.rank}", socket.gethostname())
        if self._store.add("arrivals", 1) == self.size:
            self._store.set("all arrived", "")
        try:
            self._store.wait(["all arrived"], timedelta(seconds=timeout_s))
        except dist.DistError as error:
            missing = [str(rank) for rank in range(self.size) if not self._store.check([f"arrived/{rank}"])]
            raise LostRankError(
                f"after {timeout_s:.0f} s {len(missing)} of {self.size} ranks have not arrived: "
                f"{abridged(missing)}. See the output of their nodes in the job's log."
            ) from error

    def write_heartbeat(self, text: str) -> None:
        """Replace this rank's heartbeat."""
        self._call(lambda: self._store.set(f"heartbeat/{self.rank}", text))

    def read_heartbeat(self, rank: int) -> str | None:
        """Return a rank's last heartbeat; None before its first."""
        return self._get(f"heartbeat/{rank}")

    def set_abort_reason(self, text: str) -> str:
        """Set the abort reason if it is not set; return the one that is set now."""
        return str(self._call(lambda: self._store.compare_set("abort reason", "", text)).decode())

    def abort_reason(self) -> str | None:
        """Return the abort reason; None if no rank has set one."""
        return self._get("abort reason")

    def mark_done(self) -> None:
        """Count this rank among those that no longer need the store."""
        self._call(lambda: self._store.add("done", 1))

    def done_ranks(self) -> int:
        """Return the number of ranks that no longer need the store."""
        return int(self._call(lambda: self._store.add("done", 0)))

    def _get(self, key: str) -> str | None:
        exists: bool = self._call(lambda: self._store.check([key]))
        return str(self._call(lambda: self._store.get(key)).decode()) if exists else None

    def _call(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except (dist.DistError, RuntimeError) as error:
            raise LostRankError(
                f"rank 0 or its node does not answer ({str(error).splitlines()[0]})"
            ) from error


def is_connection_error(error: BaseException | None) -> bool:
    """Return True for the errors that a collective raises when another rank is lost."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "NCCL"))
    )
