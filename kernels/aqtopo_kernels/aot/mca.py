"""llvm-mca's estimate of a loop on CDNA, and eff1, the share of it with useful work of the matrix unit.

llvm-mca is in Debian's llvm-22 package; any LLVM from 22 on works. It models one wavefront with fixed
latencies. One of its cycles is four clocks. Its count is correct for matrix instructions. It counts a
transcendental, which takes four cycles, as one.
"""

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

from aqtopo_kernels.aot.machine_code import is_transcendental

_NAMES = ("llvm-mca-22", "/usr/lib/llvm-22/bin/llvm-mca", "llvm-mca")
_OLDEST = 22
NO_LLVM_MCA = "llvm-mca of LLVM 22 or newer is not installed (Debian: apt-get install llvm-22)"
_ITERATIONS = 10
_FLOP_A_CYCLE = {"fp32": 256, "bf16": 1024, "fp16": 1024}
_FLOP_A_CYCLE_GFX942 = {"fp32": 256, "bf16": 2048, "fp16": 2048}
"""FLOP of the matrix unit of one SIMD per llvm-mca cycle of four clocks."""


@cache
def find_llvm_mca() -> Path | None:
    """Return the path of llvm-mca if it is installed in a version that supports gfx942."""
    found = (shutil.which(name) for name in _NAMES)
    return next((Path(path) for path in found if path and _version(path) >= _OLDEST), None)


def _version(program: str) -> int:
    output = subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout
    version = re.search(r"version (\d+)", output)
    return int(version[1]) if version else 0


def cycles_an_iteration(loop: list[str], arch: str) -> float | None:
    """Return the cycles of one iteration, corrected for transcendentals; None if unavailable or too slow."""
    program = find_llvm_mca()
    if program is None or not loop:
        return None
    command = [str(program), "-mtriple=amdgcn-amd-amdhsa", f"-mcpu={arch}", f"-iterations={_ITERATIONS}"]
    try:
        report = subprocess.run(
            command, input="\n".join(loop), check=True, capture_output=True, text=True, timeout=20
        ).stdout
    except subprocess.TimeoutExpired:
        return None
    total = re.search(r"Total Cycles:\s+(\d+)", report)
    assert total, "no total cycles in the output of llvm-mca: its format has changed"
    return int(total[1]) / _ITERATIONS + 3 * sum(map(is_transcendental, loop))


def eff1(loop: list[str], arch: str, dtype: str, flop: float) -> float | None:
    """Return the ideal cycles of the matrix unit for one iteration's useful FLOP, divided by its cycles."""
    cycles = cycles_an_iteration(loop, arch)
    rate = (_FLOP_A_CYCLE_GFX942 if arch == "gfx942" else _FLOP_A_CYCLE)[dtype]
    return None if cycles is None else flop / rate / cycles
