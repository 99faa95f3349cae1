"""Elevation attention on the CPU with AVX-512 and with AVX2, alone and beside other work.

Forward and backward passes are measured after their results were compared. PyTorch chooses its kernels by the
processor; a second process measures with ATEN_CPU_CAPABILITY=avx2, the kernels of most other processors. In a
third, glibc keeps freed memory (`memory`), so that the large matrices of `masked` cost no page faults.

The columns are those of `benchmarks.elevation_attention`: `masked` is scaled_dot_product_attention with the
bias as its mask, and `plain` is the same without any bias. Three bounds say how much could be gained:
- `sgemm_floor_of_masked`: only the products, at the rate of a large square product. It is a bound for every
  implementation that recomputes the scores.
- `flash_of_masked`: only PyTorch's flash kernels in our call, by PyTorch's profiler.
- `tiled_floor_of_masked`: mainly products and exponentials, by PyTorch's operators in tiles (`Tiled`). It
  is a bound for implementations without flash kernels. The faster of two sizes of tiles counts.

`beside_other_work` is the processor time of our call while another process multiplies matrices on each core,
divided by that of the call alone in the same round. Threads that wait for each other and shared caches make
it larger than 1.
"""

import itertools
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from aqtopo_kernels import elevation_attention
from benchmarks.elevation_attention import (
    OUTPUTS,
    SAME,
    Attend,
    differentiate,
    make_inputs,
    masked,
    plain,
    time_attention,
)
from benchmarks.measure import Work, device, multiply_matrices, parse_arguments, report

CAPABILITY = "ATEN_CPU_CAPABILITY"

KEPT = {"MALLOC_MMAP_THRESHOLD_": str(2**33), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
"""Settings with which glibc gives no memory back."""

TILES = (512, 1024)
"""Rows and columns of scores in a tile."""


class Tiled(torch.autograd.Function):
    """exp(q k^T) v of (1, H, N, D) queries in tiles: attention without its sums of rows, maxima and bias."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, size: int) -> Tensor:
        """Return exp(q k^T) v, (1, H, N, D)."""
        ctx.save_for_backward(q, k, v)
        ctx.size = size
        out = torch.zeros_like(q)
        for heads, rows, columns, scores, _ in _tiles(q, size):
            _exponentials(q[0, heads, rows], k[0, heads, columns], scores)
            out[0, heads, rows].baddbmm_(scores, v[0, heads, columns])
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k and v."""
        q, k, v = ctx.saved_tensors
        dq, dk, dv = (torch.zeros_like(x) for x in (q, k, v))
        for heads, rows, columns, scores, gradient in _tiles(q, ctx.size):
            _exponentials(q[0, heads, rows], k[0, heads, columns], scores)
            torch.bmm(dout[0, heads, rows], v[0, heads, columns].mT, out=gradient)
            dv[0, heads, columns].baddbmm_(scores.mT, dout[0, heads, rows])
            gradient.mul_(scores)
            dq[0, heads, rows].baddbmm_(gradient, k[0, heads, columns])
            dk[0, heads, columns].baddbmm_(gradient.mT, q[0, heads, rows])
        return dq, dk, dv, None


def _tiles(q: Tensor, size: int) -> Iterator[tuple[slice, slice, slice, Tensor, Tensor]]:
    """Heads, rows and columns of each tile, one head for each thread, and two reused matrices of scores."""
    _, H, N, _ = q.shape
    G = torch.get_num_threads()
    scores, gradient = q.new_empty((G, size, size)), q.new_empty((G, size, size))
    for head, column, row in itertools.product(range(0, H, G), range(0, N, size), range(0, N, size)):
        heads, rows, columns = slice(head, head + G), slice(row, row + size), slice(column, column + size)
        matrix = slice(min(G, H - head)), slice(min(size, N - row)), slice(min(size, N - column))
        yield heads, rows, columns, scores[matrix], gradient[matrix]


def _exponentials(q: Tensor, k: Tensor, scores: Tensor) -> None:
    torch.bmm(q, k.mT, out=scores)
    scores.exp_()


def tiled(size: int) -> Attend:
    """`Tiled` with tiles of this size and the signature of the contenders."""

    def attend(q: Tensor, k: Tensor, v: Tensor, _elevation: Tensor, _alpha: Tensor) -> Tensor:
        out: Tensor = Tiled.apply(q * q.shape[-1] ** -0.5, k, v, size)
        return out

    return attend


def whole(q: Tensor, k: Tensor, v: Tensor, _elevation: Tensor, _alpha: Tensor) -> Tensor:
    """Return what `Tiled` computes, with whole matrices."""
    return torch.exp(q * q.shape[-1] ** -0.5 @ k.mT) @ v


def measure(tokens: int, rounds: int, product: int) -> dict[str, Any]:
    """Return the row of a number of tokens."""
    inputs = make_inputs(tokens)
    inputs[4] = inputs[4][:1]  # one alpha for all heads
    compare(elevation_attention, masked, inputs)
    tiles = {f"tiles_{size}": tiled(size) for size in TILES}
    implementations = {"fused": elevation_attention, "masked": masked, "plain": plain} | tiles
    timed = time_attention(tokens, rounds, implementations, torch.float32, product)
    row: dict[str, Any] = {"kernels": torch.backends.cpu.get_cpu_capability()}
    row |= {"memory": "kept" if KEPT.items() <= os.environ.items() else "returned", "N": tokens}
    names = ("seconds", "time_of_masked", "sgemm_floor_of_masked", "time_of_plain", "sgemm_gflop_s", "mib")
    row |= {name: timed[name] for name in (*names, "memory_of_masked")}
    of_tiles = max(timed[f"time_of_{name}"] for name in tiles)
    row["tiled_floor_of_masked"] = row["time_of_masked"] / of_tiles
    row["flash_of_masked"] = row["time_of_masked"] * share_in_flash(inputs)
    ratio = beside_other_work(lambda: differentiate(elevation_attention, inputs), rounds)
    return row | {"beside_other_work": ratio}


def compare(attend: Attend, other: Attend, inputs: list[Tensor]) -> None:
    """End the run if two implementations differ."""
    pairs = zip(OUTPUTS, differentiate(attend, inputs), differentiate(other, inputs), strict=True)
    for name, ours, theirs in pairs:
        difference = float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30))
        if difference > SAME[torch.float32]:
            raise SystemExit(
                f"{attend} and {other} differ by {difference:.2g} (relative) in {name} "
                f"at {inputs[0].shape[2]} tokens."
            )


def share_in_flash(inputs: list[Tensor]) -> float:
    """Return the share of PyTorch's flash kernels in the time of all operators of our call."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        differentiate(elevation_attention, inputs)
    events = profiler.key_averages()
    flash = sum(event.self_cpu_time_total for event in events if "flash_attention_for_cpu" in event.key)
    return float(flash / sum(event.self_cpu_time_total for event in events))


def beside_other_work(work: Work, rounds: int) -> float:
    """Return the processor time of a call beside other processes, divided by that of a call alone."""
    ratios = []
    with other_processes() as pids:
        for _ in range(rounds):
            seconds = []
            for wanted in (signal.SIGSTOP, signal.SIGCONT):
                for pid in pids:
                    os.kill(pid, wanted)
                time.sleep(0.2)
                began = time.process_time()
                work()
                seconds.append(time.process_time() - began)
            ratios.append(seconds[1] / seconds[0])
    return statistics.median(ratios)


@contextmanager
def other_processes() -> Iterator[list[int]]:
    """Start a process for each of our threads that multiplies matrices; yield their numbers."""
    context = multiprocessing.get_context("spawn")
    started = [context.Event() for _ in range(torch.get_num_threads())]
    processes = [context.Process(target=_multiply, args=(event,), daemon=True) for event in started]
    for process in processes:
        process.start()
    try:
        for event in started:
            event.wait()
        yield [process.pid for process in processes if process.pid]
    finally:
        for process in processes:
            process.kill()
            process.join()


def _multiply(started: Event) -> None:
    torch.set_num_threads(1)
    multiply = multiply_matrices(1024)[0]
    while True:
        multiply()
        started.set()


def variants() -> list[dict[str, str]]:
    """Return the environment variables of each further process; none within such a process."""
    if CAPABILITY in os.environ or os.environ.keys() & KEPT:
        return []
    narrow = [{CAPABILITY: "avx2"}] if torch.backends.cpu.get_cpu_capability() == "AVX512" else []
    return [*narrow, KEPT]


def main() -> None:
    """Print the figures."""
    options = parse_arguments(__doc__)
    if device().type != "cpu":
        raise SystemExit("A GPU is visible, but cpu_attention runs on the CPU; set CUDA_VISIBLE_DEVICES=")
    sizes = [(512, 1, 512)] if options.quick else [(2048, 5, 4096), (4096, 3, 4096), (8192, 3, 4096)]
    for size in TILES:
        compare(tiled(size), whole, make_inputs(1100))
    rows = [measure(*size) for size in sizes]
    for variables in variants():
        command = [sys.executable, "-m", "benchmarks.cpu_attention", "--json", *sys.argv[1:]]
        environment = {**os.environ, **variables}
        printed = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env=environment
        ).stdout
        rows += json.loads(printed[printed.index("{\n") :])["rows"]
    report("cpu_attention", rows, options)


if __name__ == "__main__":
    main()
