"""Train step on the CPU with three spin counts of waiting OpenMP threads, alone and beside other work.

The spin count is GOMP_SPINCOUNT: 300000 is libgomp's default, 10000 that of the command `aqtopo`; with 0 a
thread sleeps at once, as with OMP_WAIT_POLICY=passive. Each spin count has its own process. The processes
make steps of the published model in turn, with equally many threads. Beside other work, another process
multiplies matrices on each core. Ratios to the default are medians of the ratio within a round. The losses
must be equal.
"""

import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from statistics import median
from typing import Any

import torch

from aqtopo.config import ModelConfig
from aqtopo.model import AirQualityViT
from aqtopo.training.step import squared_error
from benchmarks.cpu_attention import other_processes
from benchmarks.measure import device, parse_arguments, report
from benchmarks.train_step import SEED, make_batch, make_terrain

LIBGOMP_DEFAULT = 300_000
SPINS = (LIBGOMP_DEFAULT, 10_000, 0)
PUBLISHED = {"regions": [8, 8]}
"""The published model, with regions that divide the grids."""

SMALL = {"dim": 96, "depth": 2, "heads": 1, "regions": [8, 8]}


class StepProcess:
    """A process that makes a train step on request."""

    def __init__(self, grid: tuple[int, int], model: dict[str, Any], spins: int) -> None:
        command = [sys.executable, "-m", "benchmarks.spinning", "--steps", json.dumps([grid, model])]
        settings = {"GOMP_SPINCOUNT": str(spins), "OMP_NUM_THREADS": str(torch.get_num_threads())}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | settings
        )

    def step(self) -> dict[str, float]:
        """Make a step; return its seconds, processor seconds and loss."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        answer: dict[str, float] = json.loads(self._process.stdout.readline())
        return answer

    def stop(self) -> None:
        """End the process."""
        self._process.communicate()


def serve_steps(grid: tuple[int, int], model: dict[str, Any]) -> None:
    """Make a step for each line of the standard input and print its measurements."""
    config = ModelConfig.model_validate(model)
    network = AirQualityViT(config, make_terrain(grid), variables=15, targets=6).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    *fields, targets = make_batch(grid, 1, 1, torch.device("cpu"))
    valid = torch.ones_like(targets, dtype=torch.bool)
    for _ in sys.stdin:
        began, processor_began = time.perf_counter(), time.process_time()
        loss = squared_error(network(*fields, [SEED]), targets, valid) / targets.numel()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds, processor_seconds = time.perf_counter() - began, time.process_time() - processor_began
        answer = {"seconds": seconds, "processor_seconds": processor_seconds, "loss": float(loss.detach())}
        print(json.dumps(answer), flush=True)


def compare(grid: tuple[int, int], model: dict[str, Any], rounds: int) -> list[dict[str, Any]]:
    """Return a row of each spin count, alone and beside other work."""
    processes = {spins: StepProcess(grid, model, spins) for spins in SPINS}
    for process in processes.values():
        process.step()  # the first step, which also allocates
    rows = []
    for beside, context in (("nothing", nullcontext()), ("a matrix product on each core", other_processes())):
        with context:
            taken = [{spins: process.step() for spins, process in processes.items()} for _ in range(rounds)]
        assert all(len({step["loss"] for step in steps.values()}) == 1 for steps in taken), taken
        facts = {"grid": f"{grid[0]} x {grid[1]}", "beside": beside}
        rows += [facts | _row(spins, taken) for spins in SPINS]
    for process in processes.values():
        process.stop()
    return rows


def _row(spins: int, taken: list[dict[int, dict[str, float]]]) -> dict[str, Any]:
    row: dict[str, Any] = {"GOMP_SPINCOUNT": spins}
    for quantity in ("seconds", "processor_seconds"):
        row[quantity] = median(steps[spins][quantity] for steps in taken)
        ratios = (steps[spins][quantity] / steps[LIBGOMP_DEFAULT][quantity] for steps in taken)
        row[f"{quantity}_of_default"] = median(ratios)
    return row


def main() -> None:
    """Print the figures."""
    if sys.argv[1:2] == ["--steps"]:
        serve_steps(*json.loads(sys.argv[2]))
        return
    options = parse_arguments(__doc__)
    if device().type != "cpu":
        raise SystemExit("A GPU is visible, but spinning runs on the CPU; set CUDA_VISIBLE_DEVICES=")
    if torch.get_num_threads() == 1:
        raise SystemExit(
            "One thread waits for no other, so spin counts change nothing; set --threads 2 or more."
        )
    sizes = [((32, 64), SMALL, 1)] if options.quick else [((32, 64), PUBLISHED, 9), ((64, 128), PUBLISHED, 5)]
    report("spinning", [row for size in sizes for row in compare(*size)], options)


if __name__ == "__main__":
    main()
