"""A whole train step: forward, backward and AdamW of the published model, all physics on.

First the step of one process at 128 x 256 cells, a sample a step, by part. Then the same model on a smaller
grid under this program's engine (DeepSpeed ZeRO-2) and under PyTorch's DistributedDataParallel, two
processes each: samples/s and peak memory of a process, this program's as a multiple of DDP's.
"""

import os
import socket
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn

from aqtopo.config import ModelConfig, RunConfig, load_config
from aqtopo.model import AirQualityViT, Terrain, build_model
from aqtopo.training.loss import squared_error
from benchmarks.measure import (
    MIB,
    arguments,
    device,
    multiply_matrices,
    paired,
    peak_bytes,
    report,
    seconds_of,
    synchronize,
)

RANKS = 2
CONFIG = Path("ds_configs/demo_cpu.json")
PUBLISHED = {"dim": 768, "depth": 6, "heads": 8, "patch": 2}
"""The model under test with two processes, on the demo's grid; the rest is as in its configuration."""

SMALL = {"dim": 128, "depth": 2, "heads": 4, "patch": 4}
BUCKET_ELEMENTS = 60_000_000
"""As in the configurations for clusters; the demo's buckets are cut to its own small model."""

SEED = 7


def make_terrain(grid: tuple[int, int]) -> Terrain:
    """Hills and plains, as rough as the real thing."""
    generator = torch.Generator().manual_seed(1)
    coarse = 5000.0 * torch.rand((1, 1, grid[0] // 8, grid[1] // 8), generator=generator)
    smooth = nn.functional.interpolate(coarse, size=grid, mode="bilinear")[0, 0]
    return Terrain(smooth.numpy(), torch.linspace(17.0, 49.0, grid[0]).numpy())


def make_batch(grid: tuple[int, int], batch: int, leads: int, where: torch.device) -> list[Tensor]:
    """Inputs, wind [m/s], lead times [h] and targets."""
    generator = torch.Generator().manual_seed(2)
    inputs, wind = (torch.randn((batch, n, *grid), generator=generator) for n in (15, 2))
    targets = torch.randn((batch, leads, 6, *grid), generator=generator)
    hours = torch.tensor([12.0, 24.0, 48.0, 96.0][:leads]).expand(batch, -1)
    return [x.to(where) for x in (inputs, 5.0 * wind, hours, targets)]


class Parts:
    """Seconds of each part of a step, forward and backward, told by the tensors that leave the parts."""

    def __init__(self, model: AirQualityViT) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._last = time.perf_counter()
        names = ["embedding", "block 0", *["further blocks"] * (len(model.blocks) - 1), "head"]
        for part, (before, after) in zip([*model.blocks, model.head], pairwise(names), strict=True):
            part.register_forward_pre_hook(partial(self._enter, before, after))
        model.register_forward_hook(partial(self._leave, names[-1], "loss"))

    def mark(self, name: str) -> None:
        """Give the time since the last mark to a part."""
        synchronize()
        now = time.perf_counter()
        self.seconds[name] += now - self._last
        self._last = now

    def _enter(self, before: str, after: str, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._boundary(before, after, inputs[0])

    def _leave(self, before: str, after: str, _: nn.Module, __: object, output: Tensor) -> None:
        self._boundary(before, after, output)

    def _boundary(self, before: str, after: str, x: Tensor) -> None:
        self.mark(f"{before} forward")
        x.register_hook(lambda _: self.mark(f"{after} backward"))


def one_process(grid: tuple[int, int], steps: int, **model: Any) -> list[dict[str, Any]]:
    """The median step of one process, whole and by part."""
    network = AirQualityViT(
        ModelConfig.model_validate(model), make_terrain(grid), variables=15, targets=6
    ).to(device())
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    *fields, targets = make_batch(grid, 1, 1, device())
    valid = torch.ones_like(targets, dtype=torch.bool)
    parts = Parts(network)

    def step() -> None:
        parts.mark("between steps")
        loss = squared_error(network(*fields, [SEED]), targets, valid) / targets.numel()
        parts.mark("loss forward")
        loss.backward()
        parts.mark("embedding backward")
        optimizer.step()
        optimizer.zero_grad()
        parts.mark("AdamW")

    rows = []
    memory = peak_bytes(step)  # the first step, which makes the optimizer's state too
    for _ in range(steps):
        parts.seconds.clear()
        step()
        seconds = dict(parts.seconds)
        seconds.pop("between steps", None)
        rows.append({"step_seconds": sum(seconds.values())} | seconds)
    row = sorted(rows, key=lambda row: row["step_seconds"])[len(rows) // 2]
    row["of_sgemm"] = _flop(network) / row["step_seconds"] / _sgemm_flop_s()
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    facts = {"grid": f"{grid[0]} x {grid[1]}", "million_parameters": weights / 4e6}
    return [facts | {"gib_peak": (memory + weights) / 2**30} | row]


def _flop(network: AirQualityViT) -> float:
    """Of the blocks' matrix products, forward and backward, one sample; the rest is below 1%."""
    config, tokens = network.config, network.pos_embed.shape[1]
    projections, attention = 72.0 * tokens * config.dim**2, 14.0 * tokens**2 * config.dim
    return config.depth * (projections + attention)


def _sgemm_flop_s() -> float:
    work, flop = multiply_matrices()
    return flop / paired({"sgemm": work}, 5).median("sgemm")


def two_processes(steps: int, model: dict[str, int]) -> list[dict[str, Any]]:
    """This program's engine against DDP, both with two processes."""
    found = {name: _run_ranks(name, steps, model) for name in ("ddp", "engine")}
    row: dict[str, Any] = {"ranks": RANKS} | model
    for name, (rate, memory) in found.items():
        row |= {f"{name}_samples_per_s": rate, f"{name}_mib_a_rank": memory}
    row["samples_per_s_of_ddp"] = row["engine_samples_per_s"] / row["ddp_samples_per_s"]
    row["memory_of_ddp"] = row["engine_mib_a_rank"] / row["ddp_mib_a_rank"]
    return [row]


def _run_ranks(engine: str, steps: int, model: dict[str, int]) -> tuple[float, float]:
    """Samples/s of all ranks and the largest memory of one [MiB]."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(_rank, (engine, steps, model, port, results), nprocs=RANKS)
    found = [results.get() for _ in range(RANKS)]
    return min(rate for rate, _ in found), max(memory for _, memory in found)


def _rank(rank: int, engine: str, steps: int, shape: dict[str, int], port: int, results: Any) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS), MASTER_ADDR="127.0.0.1")
    os.environ.update(MASTER_PORT=str(port), OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu")
    torch.set_num_threads(1)
    from aqtopo.training import distributed

    sizes = [f"model.{name}={value}" for name, value in shape.items()]
    fields = ["train_micro_batch_size_per_gpu=1", "gradient_accumulation_steps=1"]
    fields += [f"zero_optimization.reduce_bucket_size={BUCKET_ELEMENTS}"]
    config = load_config(CONFIG, sizes + [f"deepspeed.{field}" for field in fields])
    where = distributed.connect(distributed.read_launch())
    model = build_model(config, make_terrain(config.data.grid)).train()
    batch = make_batch(config.data.grid, config.micro_batch, len(config.data.horizons), where)
    make_step = {"engine": _engine_step, "ddp": _ddp_step}[engine]
    timed: list[float] = []

    def run() -> None:
        step = make_step(config, model, where, batch)
        timed.extend(seconds_of(step) for _ in range(steps))

    memory = peak_bytes(run)
    samples = RANKS * config.micro_batch * config.accumulation
    results.put((samples / statistics.median(timed), memory / MIB))
    distributed.disconnect()


def _engine_step(
    config: RunConfig, model: AirQualityViT, where: torch.device, batch: list[Tensor]
) -> Callable[[], None]:
    from aqtopo.training.engine import build_engine

    engine = build_engine(config, model, RANKS, where)

    def step() -> None:
        for index in range(config.accumulation):
            engine.set_gradient_accumulation_boundary(index == config.accumulation - 1)
            engine.backward(_loss(engine, batch) / config.accumulation, scale_wrt_gas=False)
            engine.step()

    return step


def _ddp_step(
    config: RunConfig, model: AirQualityViT, where: torch.device, batch: list[Tensor]
) -> Callable[[], None]:
    replica = nn.parallel.DistributedDataParallel(model.to(where))
    optimizer = torch.optim.AdamW(replica.parameters(), lr=1e-4, weight_decay=0.01)

    def step() -> None:
        for _ in range(config.accumulation - 1):
            with replica.no_sync():
                (_loss(replica, batch) / config.accumulation).backward()
        (_loss(replica, batch) / config.accumulation).backward()
        torch.nn.utils.clip_grad_norm_(replica.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _loss(network: nn.Module, batch: list[Tensor]) -> Tensor:
    *fields, targets = batch
    prediction = network(*fields, [SEED] * len(targets))
    return squared_error(prediction, targets, torch.ones_like(targets, dtype=torch.bool)) / targets.numel()


def main() -> None:
    """Print the figures."""
    options = arguments(__doc__)
    if options.quick:
        rows = one_process((16, 32), 1, dim=96, heads=1, depth=2, regions=[4, 4])
        rows += two_processes(3, SMALL)
    else:
        rows = one_process((128, 256), 2) + two_processes(7, PUBLISHED)
    report("train_step", rows, options)


if __name__ == "__main__":
    main()
