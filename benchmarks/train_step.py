"""A whole train step: forward, backward and AdamW of the published model, all physics on.

First the step of one process at 128 x 256 cells, a sample a step, by part. Then the same model on two
smaller grids under this program's engine (DeepSpeed ZeRO-2) and under PyTorch's DistributedDataParallel, two
processes each: samples/s, peak memory of a process, the step by part, and this program's figures as multiples
of DDP's. What sharding costs hangs on the parameters, what it is a share of on the tokens too.

On a GPU the first step is also taken in bfloat16, with TFLOP/s and their share of the maker's peak; the two
processes have a GPU each.
"""

import os
import socket
import sys
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
    GEMM,
    MIB,
    arguments,
    device,
    gpu_name,
    multiply_matrices,
    paired,
    peak_bytes,
    report,
    synchronize,
)
from benchmarks.peaks import arithmetic

RANKS = 2
CONFIG = Path("ds_configs/demo_cpu.json")
PUBLISHED = {"dim": 768, "depth": 6, "heads": 8, "patch": 2}
"""The model under test with two processes; the rest is as in the demo's configuration."""

SMALL = {"dim": 128, "depth": 2, "heads": 4, "patch": 4}
BUCKET_ELEMENTS = 60_000_000
"""As in the configurations for clusters; the demo's buckets are cut to its own small model."""

SEED = 7


def make_terrain(grid: tuple[int, int]) -> Terrain:
    """Hills and plains, as rough as the real thing."""
    generator = torch.Generator().manual_seed(1)
    coarse = 5000.0 * torch.rand((1, 1, grid[0] // 8, grid[1] // 8), generator=generator)
    smooth = nn.functional.interpolate(coarse, size=grid, mode="bilinear")[0, 0]
    latitude, longitude = torch.linspace(17.0, 49.0, grid[0]), torch.linspace(73.0, 136.75, grid[1])
    return Terrain(smooth.numpy(), latitude.numpy(), longitude.numpy())


def make_batch(grid: tuple[int, int], batch: int, leads: int, where: torch.device) -> list[Tensor]:
    """Inputs, wind [m/s], lead times [h] and targets."""
    generator = torch.Generator().manual_seed(2)
    inputs, wind = (torch.randn((batch, n, *grid), generator=generator) for n in (15, 2))
    targets = torch.randn((batch, leads, 6, *grid), generator=generator)
    hours = torch.tensor([12.0, 24.0, 48.0, 96.0][:leads]).expand(batch, -1)
    return [x.to(where) for x in (inputs, 5.0 * wind, hours, targets)]


class Clock:
    """Seconds of each part of a step."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._last = time.perf_counter()

    def mark(self, name: str) -> None:
        """Give the time since the last mark to a part."""
        synchronize()
        now = time.perf_counter()
        self.seconds[name] += now - self._last
        self._last = now


class Parts(Clock):
    """Seconds of each part of a model, forward and backward, told by the tensors that leave the parts."""

    def __init__(self, model: AirQualityViT) -> None:
        super().__init__()
        names = ["embedding", "block 0", *["further blocks"] * (len(model.blocks) - 1), "head"]
        for part, (before, after) in zip([*model.blocks, model.head], pairwise(names), strict=True):
            part.register_forward_pre_hook(partial(self._enter, before, after))
        model.register_forward_hook(partial(self._leave, names[-1], "loss"))

    def _enter(self, before: str, after: str, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._boundary(before, after, inputs[0])

    def _leave(self, before: str, after: str, _: nn.Module, __: object, output: Tensor) -> None:
        self._boundary(before, after, output)

    def _boundary(self, before: str, after: str, x: Tensor) -> None:
        self.mark(f"{before} forward")
        x.register_hook(lambda _: self.mark(f"{after} backward"))


def one_process(
    grid: tuple[int, int], steps: int, dtype: torch.dtype, product: int, **model: Any
) -> list[dict[str, Any]]:
    """The median step of one process, whole and by part, beside a matrix product of that size."""
    network = AirQualityViT(
        ModelConfig.model_validate(model), make_terrain(grid), variables=15, targets=6
    ).to(device(), dtype)
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
    flop_s = _flop(network) / row["step_seconds"]
    row |= {f"of_{GEMM[dtype]}": flop_s / _gemm_flop_s(product, dtype)} | arithmetic(
        gpu_name(), dtype, flop_s
    )
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    parameters = sum(p.numel() for p in network.parameters())
    facts = {"grid": f"{grid[0]} x {grid[1]}", "million_parameters": parameters / 1e6}
    return [facts | {"gib_peak": (memory + weights) / 2**30} | row]


def _flop(network: AirQualityViT) -> float:
    """Of the blocks' matrix products, forward and backward, one sample; the rest is below 1%."""
    config, tokens = network.config, network.pos_embed.shape[1]
    projections, attention = 72.0 * tokens * config.dim**2, 14.0 * tokens**2 * config.dim
    return config.depth * (projections + attention)


def _gemm_flop_s(size: int, dtype: torch.dtype) -> float:
    work, flop = multiply_matrices(size, dtype)
    return flop / paired({"product": work}, 5).median("product")


def enough_gpus() -> bool:
    """Whether every process gets a GPU of its own, or all run on the CPU: on a shared one both would wait."""
    gpus = torch.cuda.device_count()
    if device().type == "cpu" or gpus >= RANKS:
        return True
    print(f"No comparison with DDP: {RANKS} processes need a GPU each, and there is {gpus}.", file=sys.stderr)
    return False


def two_processes(grid: tuple[int, int], steps: int, model: dict[str, int]) -> list[dict[str, Any]]:
    """This program's engine against DDP, both with two processes: each by part, and the ratios."""
    found = {name: _run_ranks(name, grid, steps, model) for name in ("ddp", "engine")}
    facts = {"ranks": RANKS, "grid": f"{grid[0]} x {grid[1]}"}
    of_ddp = {name: found["engine"][name] / found["ddp"][name] for name in ("samples_per_s", "mib_a_rank")}
    rows = [facts | {"program": name} | figures for name, figures in found.items()]
    return [*rows, facts | {f"{name}_of_ddp": ratio for name, ratio in of_ddp.items()}]


def _run_ranks(program: str, grid: tuple[int, int], steps: int, model: dict[str, int]) -> dict[str, float]:
    """Samples/s of all ranks, the largest memory of one [MiB], and the slowest one's median step by part."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(_rank, (program, grid, steps, model, port, results), nprocs=RANKS)
    found = [results.get() for _ in range(RANKS)]
    slowest = min((figures for figures, _ in found), key=lambda figures: figures["samples_per_s"])
    return slowest | {"mib_a_rank": max(memory for _, memory in found) / MIB}


def _rank(
    rank: int,
    program: str,
    grid: tuple[int, int],
    steps: int,
    shape: dict[str, int],
    port: int,
    results: Any,
) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS), MASTER_ADDR="127.0.0.1")
    os.environ.update(MASTER_PORT=str(port), OMP_NUM_THREADS="1", DS_ACCELERATOR=device().type)
    torch.set_num_threads(1)
    from aqtopo.training import distributed
    from aqtopo.training.launch import read_launch

    changes = [f"data.grid={list(grid)}", *(f"model.{name}={value}" for name, value in shape.items())]
    fields = ["train_micro_batch_size_per_gpu=1", "gradient_accumulation_steps=1"]
    fields += [f"zero_optimization.reduce_bucket_size={BUCKET_ELEMENTS}"]
    config = load_config(CONFIG, changes + [f"deepspeed.{field}" for field in fields])
    where = distributed.connect(read_launch())
    model = build_model(config, make_terrain(grid)).train()
    batch = make_batch(grid, config.micro_batch, len(config.data.horizons), where)
    make_step = {"engine": _engine_step, "ddp": _ddp_step}[program]
    timed: list[dict[str, float]] = []
    memory = peak_bytes(lambda: timed.extend(_timed(make_step(config, model, where, batch), steps)))
    median = sorted(timed, key=lambda parts: sum(parts.values()))[steps // 2]
    results.put(({"samples_per_s": RANKS * config.micro_batch / sum(median.values())} | median, memory))
    distributed.disconnect()


def _timed(step: Callable[[Clock], None], steps: int) -> list[dict[str, float]]:
    """Seconds by part of each step after the first, which makes the optimizer's state too."""
    found = []
    for _ in range(steps + 1):
        clock = Clock()
        step(clock)
        found.append(dict(clock.seconds))
    return found[1:]


def _engine_step(
    config: RunConfig, model: AirQualityViT, where: torch.device, batch: list[Tensor]
) -> Callable[[Clock], None]:
    from aqtopo.training.engine import build_engine

    engine = build_engine(config, model, RANKS, where)

    def step(clock: Clock) -> None:
        loss = _loss(engine, batch)
        clock.mark("forward")
        engine.backward(loss, scale_wrt_gas=False)
        clock.mark("backward and reduction")
        engine.step()
        clock.mark("update")

    return step


def _ddp_step(
    _: RunConfig, model: AirQualityViT, where: torch.device, batch: list[Tensor]
) -> Callable[[Clock], None]:
    replica = nn.parallel.DistributedDataParallel(model.to(where))
    optimizer = torch.optim.AdamW(replica.parameters(), lr=1e-4, weight_decay=0.01)

    def step(clock: Clock) -> None:
        loss = _loss(replica, batch)
        clock.mark("forward")
        loss.backward()
        clock.mark("backward and reduction")
        torch.nn.utils.clip_grad_norm_(replica.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.mark("update")

    return step


def _loss(network: nn.Module, batch: list[Tensor]) -> Tensor:
    *fields, targets = batch
    prediction = network(*fields, [SEED] * len(targets))
    return squared_error(prediction, targets, torch.ones_like(targets, dtype=torch.bool)) / targets.numel()


def main() -> None:
    """Print the figures."""
    options = arguments(__doc__)
    dtypes = list(GEMM) if device().type == "cuda" else [torch.float32]
    rows: list[dict[str, Any]] = []
    for dtype in dtypes:
        if options.quick:
            rows += one_process((16, 32), 1, dtype, 1024, dim=96, heads=1, depth=2, regions=[4, 4])
        else:
            rows += one_process((128, 256), 2, dtype, 4096)
    quick, full = [((32, 64), 3, SMALL)], [((32, 64), 7, PUBLISHED), ((64, 128), 5, PUBLISHED)]
    if enough_gpus():
        rows += [row for what in (quick if options.quick else full) for row in two_processes(*what)]
    report("train_step", rows, options)


if __name__ == "__main__":
    main()
