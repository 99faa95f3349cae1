"""Train steps of this package's engine (DeepSpeed ZeRO-2) and PyTorch's DistributedDataParallel.

Each program has two processes, on two grids. All processes stay alive, and the programs take turns step by
step. The rows have samples/s, the peak memory of a process, and the seconds by part of the slowest process.
Ratios to DDP are medians of the ratio within a round. The ratio of processor time, summed over both
processes, is less sensitive to other work on the machine. The cost of sharding depends on the parameters; the
time of the whole step also depends on the tokens. Each process has its own GPU, or one thread of the CPU. In
bfloat16, which `benchmarks.gpu_check` also measures, DDP runs under autocast.

All programs have the same AdamW settings, clipping and samples, and their losses must agree at every step.
`engine, cpu_adam` has another implementation of AdamW.
"""

import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor, distributed, nn

from aqtopo.config import RunConfig, load_config
from aqtopo.model import AirQualityViT, build_model
from aqtopo.training.step import squared_error
from benchmarks.measure import (
    MIB,
    PUBLISHED_INPUTS,
    device,
    gpu_name,
    parse_arguments,
    peak_bytes,
    report,
    time_paired,
)
from benchmarks.peaks import arithmetic_columns
from benchmarks.train_step import SEED, Clock, make_batch, make_terrain, step_flop

RANKS = 2
CONFIG = Path("ds_configs/demo_cpu.json")
PUBLISHED = {"dim": 768, "depth": 6, "heads": 8, "patch": 2}
"""Model size of the comparison; all else is as in the demo's configuration."""

SMALL = {"dim": 128, "depth": 2, "heads": 4, "patch": 4}
ZERO: dict[str, tuple[str, ...]] = {
    "cuda": ("reduce_bucket_size=60000000", "contiguous_gradients=true", "overlap_comm=true"),
    "cpu": (),
}
"""Changes to `zero_optimization` of `CONFIG`, by device; on GPUs, to that of the cluster configurations."""

LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
"""Largest relative difference between the losses of a program and of the first one, by precision."""

CPU_ADAM = "engine, cpu_adam"
"""The engine with DeepSpeed's CPU AdamW (`optimizer.implementation`), compiled at its first use."""

ADAMW = "adamw"
"""The model with PyTorch's AdamW, without DDP or DeepSpeed; only for one process."""

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def enough_gpus() -> bool:
    """Return true if every process gets its own GPU, or all run on the CPU. A shared GPU would stall both."""
    gpus = torch.cuda.device_count()
    if device().type == "cpu" or gpus >= RANKS:
        return True
    print(
        f"No comparison with DDP: {RANKS} processes need one GPU each; available: {gpus}.",
        file=sys.stderr,
    )
    return False


def compare_programs(
    grid: tuple[int, int],
    steps: int,
    model: dict[str, int],
    names: tuple[str, ...] = ("ddp", "engine"),
    *,
    ranks: int = RANKS,
    precision: str = "fp32",
) -> list[dict[str, Any]]:
    """Rows of the programs: seconds by part, memory, and ratios to DDP."""
    programs = {name: Program(name, grid, model, ranks, precision) for name in names}
    timings = time_paired({name: program.step for name, program in programs.items()}, steps)
    check_losses({name: program.losses for name, program in programs.items()}, LOSS_TOLERANCE[precision])
    memory = {name: program.stop() / MIB for name, program in programs.items()}
    facts = {"ranks": ranks, "grid": f"{grid[0]} x {grid[1]}", "precision": precision}
    flop = step_flop(_config("ddp", grid, model, ranks, precision).model, grid)
    rows: list[dict[str, Any]] = []
    for name, program in programs.items():
        of_ddp = {
            "samples_per_s_of_ddp": timings.ratio("ddp", name),
            "samples_per_processor_s_of_ddp": processor_time_ratio(programs["ddp"], program, steps),
            "mib_of_ddp": memory[name] / memory["ddp"],
        }
        speed: dict[str, Any] = {"program": name, "samples_per_s": ranks / timings.median(name)}
        speed |= arithmetic_columns(gpu_name(), PRECISIONS[precision], flop / timings.median(name))
        rows.append(facts | speed | program.median_step(steps) | {"mib_a_rank": memory[name]} | of_ddp)
    return rows


def check_losses(losses: dict[str, list[float]], tolerance: float) -> None:
    """Raise AssertionError unless all programs have the losses of the first one, and these decrease."""
    (first, expected), *others = losses.items()
    assert expected[-1] < expected[0], f"{first} does not learn: {expected}"
    for name, found in others:
        pairs = zip(expected, found, strict=True)
        worst = max(abs(own / other - 1) for other, own in pairs)
        assert worst <= tolerance, f"losses of {name} and {first} differ by {worst:.2g}: {found}, {expected}"


def processor_time_ratio(one: "Program", other: "Program", last: int) -> float:
    """Median of the ratio of processor times over the `last` rounds."""
    pairs = zip(one.processor_seconds[-last:], other.processor_seconds[-last:], strict=True)
    return median(first / second for first, second in pairs)


class Program:
    """Resident processes that run one train step on request."""

    def __init__(
        self, name: str, grid: tuple[int, int], model: dict[str, int], ranks: int, precision: str
    ) -> None:
        with closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._pipes, theirs = zip(*(multiprocessing.Pipe() for _ in range(ranks)), strict=True)
        rank_arguments = (name, grid, model, precision, port, theirs)
        self._processes = multiprocessing.spawn(_rank, rank_arguments, nprocs=ranks, join=False, daemon=True)
        for pipe in theirs:
            pipe.close()  # so that recv raises EOFError if the process ends
        self._steps: list[dict[str, float]] = []
        self.processor_seconds: list[float] = []
        """Sum over all processes, by step. Other work on the machine changes it less than wall time."""
        self.losses: list[float] = []

    def step(self) -> None:
        """Run one step on all processes; record the seconds by part of the slowest process."""
        parts, processor_seconds, losses = zip(*self._ask(True), strict=True)
        self._steps.append(max(parts, key=lambda seconds: sum(seconds.values())))
        self.processor_seconds.append(sum(processor_seconds))
        self.losses.append(mean(losses))

    def median_step(self, last: int) -> dict[str, float]:
        """Seconds by part of the step with the median length among the `last` steps."""
        return sorted(self._steps[-last:], key=lambda parts: sum(parts.values()))[last // 2]

    def stop(self) -> int:
        """End the processes; return the largest peak memory of a process in bytes."""
        memory = max(self._ask(False))
        self._processes.join()
        return int(memory)

    def _ask(self, go_on: bool) -> list[Any]:
        """Send a message to each process and return the answers.

        Raises:
            ProcessExitedException: a process was killed.
            ProcessRaisedException: a process raised an error.
        """
        try:
            for pipe in self._pipes:
                pipe.send(go_on)
            return [pipe.recv() for pipe in self._pipes]
        except (EOFError, BrokenPipeError):
            self._processes.join()
            raise


def _rank(
    rank: int,
    program: str,
    grid: tuple[int, int],
    shape: dict[str, int],
    precision: str,
    port: int,
    pipes: tuple[Any, ...],
) -> None:
    for other in (*pipes[:rank], *pipes[rank + 1 :]):
        other.close()
    ranks = len(pipes)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1")
    os.environ.update(MASTER_PORT=str(port), OMP_NUM_THREADS="1", DS_ACCELERATOR=device().type)
    torch.set_num_threads(1)
    config = _config(program, grid, shape, ranks, precision)
    where = _connect(program)
    model = build_model(config, make_terrain(grid)).train()
    batch = make_batch(grid, config.micro_batch, len(config.data.horizons), where)
    make_step = _plain_step if program in ("ddp", ADAMW) else _engine_step
    pipes[rank].send(peak_bytes(lambda: _serve(make_step(config, model, where, batch, program), pipes[rank])))
    distributed.destroy_process_group()


def _connect(program: str) -> torch.device:
    """Join the process group, without DeepSpeed where the program does not use it; return the device."""
    from aqtopo.distributed import process_group
    from aqtopo.distributed.device import select_device
    from aqtopo.distributed.launch import read_launch

    if program not in ("ddp", ADAMW):
        return process_group.connect(read_launch())
    where = select_device(read_launch())
    backend = "nccl" if where.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=timedelta(minutes=5))
    return where


def _config(
    program: str, grid: tuple[int, int], shape: dict[str, int], ranks: int, precision: str
) -> RunConfig:
    """Return the configuration of one sample per process, with an update in every step."""
    changes = ["optimizer.implementation=cpu_adam"] if program == CPU_ADAM else []
    changes += ["deepspeed.bf16.enabled=true"] if precision == "bf16" else []
    changes += [*PUBLISHED_INPUTS, "optimizer.base_lr=1e-4", f"training.ranks_per_node={ranks}"]
    changes += [f"data.grid={list(grid)}", *(f"model.{name}={value}" for name, value in shape.items())]
    fields = ["train_micro_batch_size_per_gpu=1", "gradient_accumulation_steps=1"]
    fields += [f"zero_optimization.{change}" for change in ZERO[device().type]]
    return load_config(CONFIG, changes + [f"deepspeed.{field}" for field in fields])


def _serve(step: Callable[[Clock], Tensor], pipe: Any) -> None:
    """Run a step for every true message; answer with its seconds by part, processor seconds and loss."""
    while pipe.recv():
        clock, began = Clock(), time.process_time()
        loss = step(clock)
        pipe.send((dict(clock.seconds), time.process_time() - began, float(loss.detach())))


def _engine_step(
    config: RunConfig, model: AirQualityViT, where: torch.device, batch: list[Tensor], program: str
) -> Callable[[Clock], Tensor]:
    del program
    from aqtopo.training.engine import build_engine

    engine = build_engine(config, model, distributed.get_world_size(), where)

    def step(clock: Clock) -> Tensor:
        loss = _loss(engine, batch)
        clock.mark("forward")
        engine.backward(loss, scale_wrt_gas=False)
        clock.mark("backward and reduction")
        engine.step()
        clock.mark("update")
        return loss

    return step


def _plain_step(
    config: RunConfig, model: AirQualityViT, where: torch.device, batch: list[Tensor], program: str
) -> Callable[[Clock], Tensor]:
    replica: nn.Module = model.to(where)
    if program == "ddp":
        replica = nn.parallel.DistributedDataParallel(replica)
    bf16 = config.deepspeed.precision == "bf16"
    settings = config.optimizer
    optimizer = torch.optim.AdamW(
        replica.parameters(),
        lr=settings.base_lr,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )

    def step(clock: Clock) -> Tensor:
        with torch.autocast(where.type, torch.bfloat16, enabled=bf16):
            loss = _loss(replica, batch)
        clock.mark("forward")
        loss.backward()
        clock.mark("backward and reduction")
        torch.nn.utils.clip_grad_norm_(replica.parameters(), config.deepspeed.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad()
        clock.mark("update")
        return loss

    return step


def _loss(network: nn.Module, batch: list[Tensor]) -> Tensor:
    *fields, targets = batch
    prediction = network(*fields, [SEED] * len(targets))
    return squared_error(prediction, targets, torch.ones_like(targets, dtype=torch.bool)) / targets.numel()


def compare(*, quick: bool) -> list[dict[str, Any]]:
    """Rows of all grids."""
    if quick:
        return compare_programs((32, 64), 3, SMALL)
    names = ("ddp", "engine", *([CPU_ADAM] if device().type == "cpu" else []))
    sizes = (((32, 64), 11), ((64, 128), 9))
    return [row for grid, steps in sizes for row in compare_programs(grid, steps, PUBLISHED, names)]


def main() -> None:
    """Print the figures."""
    options = parse_arguments(__doc__)
    report("ddp", compare(quick=options.quick) if enough_gpus() else [], options)


if __name__ == "__main__":
    main()
