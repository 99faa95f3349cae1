"""Resources of the Triton kernels as compiled for AMD and NVIDIA GPUs. No GPU is needed.

Rows are those of `python -m aqtopo_kernels.aot`. `eff1` is the share of clocks in which a wave keeps the
matrix unit busy with useful work, as counted by llvm-mca. A spilled vector register ends the run. If no block
size divides the number of tokens, every block needs masks: the rows of 8191 tokens show this for gfx90a. The
last rows are heads of 112 columns in fp32: the model's local bias widens heads of 96 columns to 112.
"""

from typing import Any

from aqtopo_kernels.aot.mca import NO_LLVM_MCA, find_llvm_mca
from aqtopo_kernels.aot.stand_in import SHARED_BYTES
from aqtopo_kernels.aot.survey import DTYPES, Row, survey
from benchmarks.measure import parse_arguments, report

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


def main() -> None:
    """Print the figures."""
    options = parse_arguments(__doc__)
    if find_llvm_mca() is None:
        raise SystemExit(f"compiled_kernels needs llvm-mca to compute eff1, but {NO_LLVM_MCA}.")
    archs, dtypes = (["gfx90a"], ["fp32"]) if options.quick else (list(SHARED_BYTES), list(DTYPES))
    rows = kernel_rows(archs, dtypes, EVEN)
    if not options.quick:
        rows += kernel_rows(["gfx90a"], dtypes, RAGGED)
        rows += kernel_rows(list(SHARED_BYTES), ["fp32"], EVEN, WIDER)
    report("compiled_kernels", rows, options)


if __name__ == "__main__":
    main()
