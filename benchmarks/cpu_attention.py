"""Elevation attention on the CPU with AVX-512 and with AVX2, alone and beside other work.

Forward and backward passes are measured after their results were compared. PyTorch chooses its kernels by the
processor; a second process measures with ATEN_CPU_CAPABILITY=avx2, the kernels of most other processors. The
columns are those of `benchmarks.elevation_attention`: `masked` is scaled_dot_product_attention with the bias
as its mask, `plain` is the same without any bias, and the floor has only the products, at the rate of sgemm.
`flash_of_masked` is `time_of_masked` times the share of PyTorch's flash kernels in it, by PyTorch's profiler.
`beside_other_work` is the processor time of our call while another process multiplies matrices on each core,
divided by that of the call alone in the same round. Threads that wait for each other and shared caches make
it larger than 1.
"""

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
    differentiate,
    make_inputs,
    masked,
    plain,
    time_attention,
)
from benchmarks.measure import Work, device, multiply_matrices, parse_arguments, report

VARIABLE = "ATEN_CPU_CAPABILITY"


def measure(tokens: int, rounds: int, product: int) -> dict[str, Any]:
    """Return the row of a number of tokens."""
    inputs = make_inputs(tokens)
    inputs[4] = inputs[4][:1]  # one alpha for all heads
    for name, ours, theirs in zip(
        OUTPUTS, differentiate(elevation_attention, inputs), differentiate(masked, inputs), strict=True
    ):
        difference = float((ours - theirs).abs().max() / theirs.abs().max())
        if difference > SAME[torch.float32]:
            raise SystemExit(
                f"fused and masked differ by {difference:.2g} (relative) in {name} at {tokens} tokens."
            )
    implementations = {"fused": elevation_attention, "masked": masked, "plain": plain}
    timed = time_attention(tokens, rounds, implementations, torch.float32, product)
    row: dict[str, Any] = {"kernels": torch.backends.cpu.get_cpu_capability(), "N": tokens}
    names = ("seconds", "time_of_masked", "sgemm_floor_of_masked", "time_of_plain", "sgemm_gflop_s", "mib")
    row |= {name: timed[name] for name in (*names, "memory_of_masked")}
    row["flash_of_masked"] = row["time_of_masked"] * share_in_flash(inputs)
    ratio = beside_other_work(lambda: differentiate(elevation_attention, inputs), rounds)
    return row | {"beside_other_work": ratio}


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


def main() -> None:
    """Print the figures."""
    options = parse_arguments(__doc__)
    if device().type != "cpu":
        raise SystemExit("A GPU is visible, but cpu_attention runs on the CPU; set CUDA_VISIBLE_DEVICES=")
    sizes = [(512, 1, 512)] if options.quick else [(2048, 5, 4096), (4096, 3, 4096), (8192, 3, 4096)]
    rows = [measure(*size) for size in sizes]
    if VARIABLE not in os.environ and torch.backends.cpu.get_cpu_capability() == "AVX512":
        command = [sys.executable, "-m", "benchmarks.cpu_attention", "--json", *sys.argv[1:]]
        environment = {**os.environ, VARIABLE: "avx2"}
        printed = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env=environment
        ).stdout
        rows += json.loads(printed[printed.index("{\n") :])["rows"]
    report("cpu_attention", rows, options)


if __name__ == "__main__":
    main()
