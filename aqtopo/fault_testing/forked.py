"""Ranks of a run, forked from a server that has imported all packages, so that a start takes a second."""

import multiprocessing
import os
import sys
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from aqtopo.config import RunConfig
from aqtopo.distributed.launch import Launch, free_port
from aqtopo.refusal import RefusedError

PRELOADED = ["deepspeed", "deepspeed.runtime.zero.muon.original_muon", "aqtopo.training.start"]
"""Modules that the server imports. The second one imports Dynamo, which each rank's engine would import: it
reduces the CPU time of two starts of 2 ranks from 42 s to 10 s."""


def fork_ranks(
    config: RunConfig, world: int, stop_after: int | None, log: Path
) -> Sequence[ForkServerProcess]:
    """Start `aqtopo train` in `world` processes that resume from the last saved state; output is appended."""
    log.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    port = free_port()
    processes: list[ForkServerProcess] = [
        context.Process(target=_run_rank, args=(config.to_json(), rank, world, port, stop_after, str(log)))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    return processes


def _run_rank(config_json: str, rank: int, world: int, port: int, stop_after: int | None, log: str) -> None:
    """Train as one rank; the entry point of a child process."""
    from aqtopo.training.prepare import AUTO, ResumeOptions
    from aqtopo.training.start import train

    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    launch = Launch("torch", rank, rank, world, world, "127.0.0.1", port)
    try:
        train(RunConfig.model_validate_json(config_json), launch, stop_after, ResumeOptions(AUTO))
    except (RefusedError, ValueError) as error:
        print(f"rank {rank}: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(3)
