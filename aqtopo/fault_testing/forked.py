"""Ranks of a run on this machine, forked from a server that has imported everything: a start takes a second.

For what trains again and again: the drill and ablations.
"""

import multiprocessing
import os
import socket
import sys
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from aqtopo.config import RunConfig
from aqtopo.refusal import RefusedError

PRELOADED = ["deepspeed", "deepspeed.runtime.zero.muon.original_muon", "aqtopo.training.loop"]
"""What the server imports. The second, by which DeepSpeed brings in Dynamo, would come in each rank's engine:
2 ranks took 42 s of processor time to start twice, and take 10."""


def fork_ranks(
    config: RunConfig, world: int, stop_after: int | None, log: Path
) -> Sequence[ForkServerProcess]:
    """Start `aqtopo train` in `world` processes; they resume by themselves and write into `log`.

    Args:
        config: the run.
        world: how many.
        stop_after: end after so many steps; None for the whole run.
        log: file to which their output is appended.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    port = _free_port()
    processes: list[ForkServerProcess] = [
        context.Process(target=_run_rank, args=(config.to_json(), rank, world, port, stop_after, str(log)))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    return processes


def _run_rank(config_json: str, rank: int, world: int, port: int, stop_after: int | None, log: str) -> None:
    """One rank, in a process of its own."""
    from aqtopo.training.launch import Launch
    from aqtopo.training.loop import train
    from aqtopo.training.resume import AUTO, ResumeOptions

    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    launch = Launch("torch", rank, rank, world, world, "127.0.0.1", port)
    try:
        train(RunConfig.model_validate_json(config_json), launch, stop_after, ResumeOptions(AUTO))
    except (RefusedError, ValueError) as error:
        print(f"rank {rank}: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(3)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
