"""This program's engine (DeepSpeed ZeRO-2) against PyTorch's DistributedDataParallel: steps of one model.

Two processes each, on two grids; all are resident, and the programs take turns step by step. Samples/s, peak
memory of a process, the slowest process's step by part, and each program's figures as multiples of DDP's, as
medians of the ratio within a round; that of processor time, of both processes together, is moved less by what
else runs on the machine. What sharding costs hangs on the parameters, what it is a share of on the tokens
too. Each process has a GPU of its own, if there are any.
"""

import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn

from aqtopo.config import RunConfig, load_config
from aqtopo.model import AirQualityViT, build_model
from aqtopo.training.step import squared_error
from benchmarks.measure import MIB, arguments, device, paired, peak_bytes, report
from benchmarks.train_step import SEED, Clock, make_batch, make_terrain

RANKS = 2
CONFIG = Path("ds_configs/demo_cpu.json")
PUBLISHED = {"dim": 768, "depth": 6, "heads": 8, "patch": 2}
"""The model under test with two processes; the rest is as in the demo's configuration."""

SMALL = {"dim": 128, "depth": 2, "heads": 4, "patch": 4}
BUCKET_ELEMENTS = 60_000_000
"""As in the configurations for clusters; the demo's buckets are cut to its own small model."""

CPU_ADAM = "engine, cpu_adam"
"""The engine with DeepSpeed's AdamW for the CPU (`optimizer.implementation`), compiled when first used."""


def enough_gpus() -> bool:
    """Whether every process gets a GPU of its own, or all run on the CPU: on a shared one both would wait."""
    gpus = torch.cuda.device_count()
    if device().type == "cpu" or gpus >= RANKS:
        return True
    print(f"No comparison with DDP: {RANKS} processes need a GPU each, and there is {gpus}.", file=sys.stderr)
    return False


def two_processes(
    grid: tuple[int, int], steps: int, model: dict[str, int], names: tuple[str, ...] = ("ddp", "engine")
) -> list[dict[str, Any]]:
    """This program's engine against DDP, all with two processes: each by part, and the ratios."""
    programs = {name: Program(name, grid, model) for name in names}
    timings = paired({name: program.step for name, program in programs.items()}, steps)
    memory = {name: program.stop() / MIB for name, program in programs.items()}
    facts = {"ranks": RANKS, "grid": f"{grid[0]} x {grid[1]}"}
    rows: list[dict[str, Any]] = []
    for name, program in programs.items():
        of_ddp = {
            "samples_per_s_of_ddp": timings.ratio("ddp", name),
            "samples_per_processor_s_of_ddp": ratio(programs["ddp"], program, steps),
            "mib_of_ddp": memory[name] / memory["ddp"],
        }
        speed = {"program": name, "samples_per_s": RANKS / timings.median(name)}
        rows.append(facts | speed | program.median_step(steps) | {"mib_a_rank": memory[name]} | of_ddp)
    return rows


def ratio(one: "Program", other: "Program", last: int) -> float:
    """Median over so many rounds, which are the last, of the processor time of one by that of the other."""
    pairs = zip(one.processor_seconds[-last:], other.processor_seconds[-last:], strict=True)
    return median(first / second for first, second in pairs)


class Program:
    """Processes that take a step together whenever they are told to, and are still in between."""

    def __init__(self, name: str, grid: tuple[int, int], model: dict[str, int]) -> None:
        with closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._pipes, theirs = zip(*(multiprocessing.Pipe() for _ in range(RANKS)), strict=True)
        arguments = (name, grid, model, port, theirs)
        self._processes = multiprocessing.spawn(_rank, arguments, nprocs=RANKS, join=False, daemon=True)
        for pipe in theirs:
            pipe.close()  # so that the end of a process is seen
        self._steps: list[dict[str, float]] = []
        self.processor_seconds: list[float] = []
        """Of all processes, by step: what else runs on the machine changes it less than the time of day."""

    def step(self) -> None:
        """One step of all processes; the seconds by part are those of the one that took longest."""
        parts, processor_seconds = zip(*self._ask(True), strict=True)
        self._steps.append(max(parts, key=lambda seconds: sum(seconds.values())))
        self.processor_seconds.append(sum(processor_seconds))

    def median_step(self, last: int) -> dict[str, float]:
        """Of so many steps, which are the last, the one of median length, by part."""
        return sorted(self._steps[-last:], key=lambda parts: sum(parts.values()))[last // 2]

    def stop(self) -> int:
        """Ends the processes; the largest memory of one in bytes."""
        memory = max(self._ask(False))
        self._processes.join()
        return int(memory)

    def _ask(self, go_on: bool) -> list[Any]:
        """What each process answers; raises what has ended one that does not."""
        try:
            for pipe in self._pipes:
                pipe.send(go_on)
            return [pipe.recv() for pipe in self._pipes]
        except (EOFError, BrokenPipeError):
            self._processes.join()
            raise


def _rank(
    rank: int, program: str, grid: tuple[int, int], shape: dict[str, int], port: int, pipes: tuple[Any, ...]
) -> None:
    for other in (*pipes[:rank], *pipes[rank + 1 :]):
        other.close()
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS), MASTER_ADDR="127.0.0.1")
    os.environ.update(MASTER_PORT=str(port), OMP_NUM_THREADS="1", DS_ACCELERATOR=device().type)
    torch.set_num_threads(1)
    from aqtopo.distributed.launch import read_launch
    from aqtopo.training import distributed

    config = _config(program, grid, shape)
    where = distributed.connect(read_launch())
    model = build_model(config, make_terrain(grid)).train()
    batch = make_batch(grid, config.micro_batch, len(config.data.horizons), where)
    make_step = _ddp_step if program == "ddp" else _engine_step
    pipes[rank].send(peak_bytes(lambda: _serve(make_step(config, model, where, batch), pipes[rank])))
    distributed.disconnect()


def _config(program: str, grid: tuple[int, int], shape: dict[str, int]) -> RunConfig:
    changes = ["optimizer.implementation=cpu_adam"] if program == CPU_ADAM else []
    changes += [f"data.grid={list(grid)}", *(f"model.{name}={value}" for name, value in shape.items())]
    fields = ["train_micro_batch_size_per_gpu=1", "gradient_accumulation_steps=1"]
    fields += [f"zero_optimization.reduce_bucket_size={BUCKET_ELEMENTS}"]
    return load_config(CONFIG, changes + [f"deepspeed.{field}" for field in fields])


def _serve(step: Callable[[Clock], None], pipe: Any) -> None:
    """Take a step for every true message, and answer with its seconds by part and of the processor."""
    while pipe.recv():
        clock, began = Clock(), time.process_time()
        step(clock)
        pipe.send((dict(clock.seconds), time.process_time() - began))


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


def compared(*, quick: bool) -> list[dict[str, Any]]:
    """The rows of two processes."""
    if quick:
        return two_processes((32, 64), 3, SMALL)
    names = ("ddp", "engine", *([CPU_ADAM] if device().type == "cpu" else []))
    sizes = (((32, 64), 11), ((64, 128), 5))
    return [row for grid, steps in sizes for row in two_processes(grid, steps, PUBLISHED, names)]


def main() -> None:
    """Print the figures."""
    options = arguments(__doc__)
    report("ddp", compared(quick=options.quick) if enough_gpus() else [], options)


if __name__ == "__main__":
    main()
