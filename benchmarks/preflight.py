"""Rendezvous and preflight of the ranks, by number of ranks, up to the 400 of the full run.

The processes are forked from one that has imported PyTorch. They meet in the heartbeat store under the
watchdog, form a gloo process group, and run the preflight's collectives: barriers, sum, exchange of findings
and their comparison. Work that a rank does alone (imports, compilation and check of kernels, disk test) does
not depend on the number of ranks and is not included.

All processes share this machine's few processors, so wall time is the sum of all ranks' work. The processor
times of a rank and of rank 0, which serves the store, are the figures for a cluster. They include no network.
The forked processes share their memory: 400 take 7 GiB.
"""

import gc
import json
import multiprocessing
import os
import socket
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from aqtopo.checkpoint.manifest import package_versions
from aqtopo.distributed.launch import Launch
from aqtopo.distributed.process_group import barrier
from aqtopo.distributed.watchdog import start_watchdog
from aqtopo.training.preflight import RankFindings, check_reduction, compare_ranks
from benchmarks.measure import parse_arguments, report

WORLDS = (16, 64, 128, 400)


def run_rank(folder: Path, rank: int, world: int, port: int) -> None:
    """Run rendezvous and preflight; write the seconds to `<rank>.json`."""
    torch.set_num_threads(1)
    began, device = time.monotonic(), torch.device("cpu")
    launch = Launch("torch", rank, rank, world, world, "127.0.0.1", port)
    with start_watchdog(launch, folder) as watchdog:
        met = time.monotonic()
        watchdog.enter("connect")
        dist.init_process_group("gloo")
        barrier()
        connected = time.monotonic()
        watchdog.enter("preflight")
        for _ in ("first ranks' kernels", "other ranks' kernels", "clocks"):
            barrier()
        problems = check_reduction(rank, world, device)
        facts = {name: str(version) for name, version in package_versions().items()} | {"data": 64 * "0"}
        _, problems = compare_ranks(RankFindings(socket.gethostname(), facts, problems, time.time()))
        assert not problems, problems
        compared = time.monotonic()
        dist.destroy_process_group()
    found = {"meet": met - began, "connect": connected - met, "compare": compared - connected}
    (folder / f"{rank}.json").write_text(json.dumps(found | {"cpu": time.process_time()}), encoding="utf-8")


def measure(world: int) -> dict[str, Any]:
    """Row of the slowest rank's seconds by part, and of processor time.

    Raises:
        RuntimeError: a rank failed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory(prefix="aqtopo-preflight-") as name:
        folder = Path(name)
        children = [
            context.Process(target=run_rank, args=(folder, rank, world, port)) for rank in range(world)
        ]
        for child in children:
            child.start()
        for child in children:
            child.join()
        if codes := [child.exitcode for child in children if child.exitcode]:
            raise RuntimeError(f"{len(codes)} of {world} ranks failed with exit codes {set(codes)}")
        ranks = [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(world)]
    parts = "meet", "connect", "compare"
    seconds = {f"{part}_seconds": max(rank[part] for rank in ranks) for part in parts}
    cpu = [rank["cpu"] for rank in ranks]
    return {"ranks": world} | seconds | {"cpu_s_a_rank": median(cpu[1:]), "cpu_s_rank_0": cpu[0]}


def main() -> None:
    """Print the figures."""
    options = parse_arguments(__doc__)
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    gc.freeze()  # garbage collection in a child would copy the parent's pages
    rows = [measure(world) for world in ((2, 4) if options.quick else WORLDS)]
    report("preflight", rows, options)


if __name__ == "__main__":
    main()
