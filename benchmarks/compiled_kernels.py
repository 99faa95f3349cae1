"""Resources of the Triton kernels as compiled for AMD and NVIDIA GPUs. No GPU is needed.

Rows are those of `python -m aqtopo_kernels.aot`. `eff1` is the share of clocks in which a wave keeps the
matrix unit busy with useful work, as counted by llvm-mca. A spilled vector register ends the run. If no block
size divides the number of tokens, every block needs masks: the rows of 8191 tokens show this for gfx90a. The
last rows are heads of 112 columns in fp32: the model's local bias widens heads of 96 columns to 112.

For AMD, a second table counts what a wave executes for all tokens, on the emulator of `tests/amdgcn`:
instructions by class, and the KiB that its lanes load and store, equal addresses counted once for each lane.
`in loop` is the share of the inner loop, to which `eff1` applies.
"""

from dataclasses import replace
from typing import Any

import torch

from aqtopo_kernels.aot.mca import NO_LLVM_MCA, find_llvm_mca
from aqtopo_kernels.aot.stand_in import SHARED_BYTES
from aqtopo_kernels.aot.survey import DTYPES, KERNEL_NAMES, Row, survey
from aqtopo_kernels.elevation_attention import launch as attention
from benchmarks.measure import parse_arguments, report
from tests.amdgcn.device import emulating

HEADS, WIDTH, WIDER = 8, 96, 112
EVEN, RAGGED = 8192, 8191
COLUMNS = ("vgprs", "agprs", "lds_bytes", "occupancy", "instructions_per_iteration", "useful", "eff1")


def kernel_rows(archs: list[str], dtypes: list[str], tokens: int, width: int = WIDTH) -> list[dict[str, Any]]:
    """Rows of the table for a number of tokens, without the kernels that only move memory.

    Raises:
        SystemExit: a kernel spills vector registers.
    """
    rows = [row for row, _ in survey(archs, dtypes, tokens=tokens, head_dim=width, heads=HEADS)]
    spilling = [row for row in rows if row["vgpr_spills"]]
    if spilling:
        raise SystemExit(f"Kernels spill vector registers: {spilling}. Choose smaller blocks.")
    return [table_row(row, tokens, width) for row in rows if row["instructions_per_iteration"]]


def table_row(row: Row, tokens: int, width: int) -> dict[str, Any]:
    """A row of the table: the kernel, its blocks, its resources."""
    config = row["config"]
    named = ("block_m", "block_n", "num_warps", "num_stages")
    return (
        {name: row[name] for name in ("arch", "dtype", "kernel")}
        | {"N": tokens, "D": width}
        | {"M, N, warps, stages": ", ".join(str(config.get(name, "-")) for name in named)}
        | resource_columns(row)
    )


def resource_columns(row: Row) -> dict[str, Any]:
    """Columns of a kernel's resources and efficiency."""
    opcodes = " ".join(f"{count} x {name}" for name, count in row["matrix_instructions"].items())
    return (
        {"spills v / s": f"{row['vgpr_spills']} / {row['sgpr_spills']}"}
        | {name: "" if row[name] is None else row[name] for name in COLUMNS}
        | {"matrix instructions": opcodes}
    )


CLASSES = ("matrix", "vector", "scalar", "LDS", "memory", "wait")
COUNTED = (256, 512)
"""Numbers of tokens that are executed: a multiple of all block sizes, and twice as many."""


def executed_rows(compiled: list[dict[str, Any]], arch: str, dtype: str) -> list[dict[str, Any]]:
    """Rows of what a wave executes, beside `eff1` of the compiled rows.

    The counts are linear in the number of tokens, so two numbers of tokens give those of all others.
    """
    fewer, more = (executed_counts(arch, dtype, tokens) for tokens in COUNTED)
    rows = []
    for row in (row for row in compiled if (row["arch"], row["dtype"]) == (arch, dtype)):
        small, large = fewer[row["kernel"]], more[row["kernel"]]
        in_loop = {name: (large[name] - small[name]) * row["N"] / (COUNTED[1] - COUNTED[0]) for name in large}
        counts = {name: round(2 * small[name] - large[name] + in_loop[name]) for name in large}
        share = sum(in_loop[name] for name in CLASSES) / sum(counts[name] for name in CLASSES)
        facts = {key: row[key] for key in ("arch", "dtype", "kernel", "N", "D", "eff1")}
        rows.append(facts | {"in loop": round(share, 4)} | counts)
    return rows


def executed_counts(arch: str, dtype: str, tokens: int) -> dict[str, dict[str, float]]:
    """Instructions by class and KiB of a wave, by kernel: means of the first workgroup."""
    x = torch.zeros((1, HEADS, tokens, WIDTH), dtype=DTYPES[dtype])
    heights, alpha, places = torch.zeros((1, tokens)), torch.ones(1), torch.arange(tokens)[None]
    found = {}
    for suffix, elevation, strength, order in (("", heights, alpha, places), ("_plain", None, None, None)):
        with emulating(arch, record=True, execute=False) as device:
            out, lse = attention.forward(x, x, x, elevation, strength, order, 1.0)
            attention.backward(x, x, x, x, out, lse, elevation, strength, order, 1.0)
        for launch in device.launches:
            done = replace(launch, grid=(1, 1, 1)).execute()
            counts: dict[str, float] = {name: done.classes()[name] / done.waves for name in CLASSES}
            counts["LDS KiB"] = (done.lds_loaded + done.lds_stored) / done.waves / 1024
            counts["memory KiB"] = (done.memory_loaded + done.memory_stored) / done.waves / 1024
            found[KERNEL_NAMES[launch.function] + suffix] = counts
    return found


def main() -> None:
    """Print the figures."""
    options = parse_arguments(__doc__)
    if find_llvm_mca() is None:
        raise SystemExit(f"compiled_kernels needs llvm-mca to compute eff1, but {NO_LLVM_MCA}.")
    archs, dtypes = (["gfx90a"], ["fp32"]) if options.quick else (list(SHARED_BYTES), list(DTYPES))
    rows = kernel_rows(archs, dtypes, EVEN)
    amd = [(arch, dtype) for arch in archs if arch.startswith("gfx") for dtype in dtypes]
    executed = [row for arch, dtype in amd for row in executed_rows(rows, arch, dtype)]
    if not options.quick:
        rows += kernel_rows(["gfx90a"], dtypes, RAGGED)
        rows += kernel_rows(list(SHARED_BYTES), ["fp32"], EVEN, WIDER)
    report("compiled_kernels", rows + executed, options)


if __name__ == "__main__":
    main()
