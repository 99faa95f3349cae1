"""Paired timings, peak memory, machine facts and output of the benchmarks.

Contenders take turns within a round, in alternating order, so that other work slows all of them equally. A
ratio is the median over rounds of the ratio within a round, not a ratio of two medians.
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from aqtopo_kernels import backend_for

Work = Callable[[], object]

MIB = 2**20

PUBLISHED_INPUTS = (
    "data.forcings=[]",
    "data.history_hours=[]",
    "data.history_variables=null",
    "model.local_path=false",
)
"""Overrides that leave the inputs of the published configurations, which small grids allow too."""


@dataclass
class Timings:
    """Seconds of each contender in each round."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def median(self, name: str) -> float:
        """Median seconds of a contender."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, to: str) -> float:
        """Median over rounds of the time of `name` divided by the time of `to` in the same round."""
        pairs = zip(self.seconds[name], self.seconds[to], strict=True)
        return statistics.median(one / other for one, other in pairs)


def device() -> torch.device:
    """Return the accelerator if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def gpu_name() -> str | None:
    """Return PyTorch's name of the accelerator; None without one."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def synchronize() -> None:
    """Wait until the accelerator is idle."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(work: Work) -> float:
    """Wall-clock seconds of one call."""
    synchronize()
    began = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - began


def time_paired(
    contenders: dict[str, Work], rounds: int, *, warm_up: bool = True, before: dict[str, Work] | None = None
) -> Timings:
    """Time all contenders in turn, `rounds` times, every second round backwards; `before` is not timed."""
    timings = Timings({name: [] for name in contenders})
    for round_ in range(rounds + warm_up):
        for name, work in list(contenders.items())[:: -1 if round_ % 2 else 1]:
            if before:
                before[name]()
            seconds = seconds_of(work)
            if round_ >= warm_up:
                timings.seconds[name].append(seconds)
    return timings


def peak_bytes(work: Work) -> int:
    """Return the peak memory of a call above the memory before it, without its results.

    On the CPU it is the resident memory of the process, from the kernel's high-water mark. The call runs in a
    new thread, so memory that an operator keeps for each thread is counted.
    """
    gc.collect()
    if torch.cuda.is_available():
        synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        results = work()
        synchronize()
        return torch.cuda.max_memory_allocated() - before - _bytes_of(results)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the high-water mark
    before = _status_bytes("VmRSS")
    with ThreadPoolExecutor(max_workers=1) as thread:
        results = thread.submit(work).result()
    return _status_bytes("VmHWM") - before - _bytes_of(results)


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def _bytes_of(results: object) -> int:
    if isinstance(results, torch.Tensor):
        return results.untyped_storage().nbytes()
    if isinstance(results, tuple | list):
        return sum(map(_bytes_of, results))
    return 0


GEMM = {torch.float32: "sgemm", torch.bfloat16: "bf16_gemm"}
"""Name of the reference matrix product by dtype."""


def multiply_matrices(size: int, dtype: torch.dtype = torch.float32) -> tuple[Work, float]:
    """Return a matrix product of size^3, the reference for arithmetic speed, and its FLOP."""
    matrix = torch.randn(size, size, device=device()).to(dtype)
    return lambda: matrix @ matrix, 2.0 * size**3


def machine() -> dict[str, Any]:
    """Facts about the machine and the versions that the figures belong to."""
    facts: dict[str, Any] = {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        **{name: version_of(name) for name in ("triton", "deepspeed") if find_spec(name)},
        "python": platform.python_version(),
        "backend": str(backend_for(device())),
    }
    if gpu := gpu_name():
        facts["device"] = gpu
    return facts


def version_of(module: str) -> str:
    """Version of the distribution that contains a module: ROCm's Triton has another name than its module."""
    return version(packages_distributions()[module][0])


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} x {len(names)}" if names else platform.processor()


def parse_arguments(description: str, *, source: str | None = None) -> argparse.Namespace:
    """Parse the options of every benchmark, and `--source` if it is described."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print only JSON on stdout")
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds, as a smoke test")
    parser.add_argument("--threads", type=int, help="number of PyTorch threads on the CPU")
    if source:
        parser.add_argument("--source", type=Path, required=True, metavar="DIR", help=source)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    return options


def report(name: str, rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Print the rows, as JSON or as lines of text."""
    result = {"benchmark": name, "quick": options.quick, "machine": machine(), "rows": rows}
    if options.json:
        print(json.dumps(result, indent=2))
        return
    print(name, result["machine"])
    for row in rows:
        print("  " + "  ".join(f"{key} {_format(value)}" for key, value in row.items()))


def _format(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
