"""The Triton kernels as compiled for AMD and NVIDIA GPUs, none of which is needed: what their code tells.

Rows are those of `python -m aqtopo_kernels.aot`, whose `eff1` is the share of clocks in which a wave keeps
the matrix unit busy with useful work, as llvm-mca counts them. A spilled vector register ends the run. A
count of tokens that no block divides costs every block its masks: the rows of 8191 tokens show it for gfx90a.
The last rows are heads of 112 columns, which the model's local bias makes of 96, and only in fp32.
"""

from typing import Any

from aqtopo_kernels.aot.mca import NO_LLVM_MCA, find_llvm_mca
from aqtopo_kernels.aot.stand_in import SHARED_BYTES
from aqtopo_kernels.aot.survey import DTYPES, Row, survey
from benchmarks.measure import arguments, report

HEADS, WIDTH, WIDER = 8, 96, 112
EVEN, RAGGED = 8192, 8191
COLUMNS = ("vgprs", "agprs", "lds_bytes", "occupancy", "instructions_per_iteration", "useful", "eff1")


def compiled(archs: list[str], dtypes: list[str], tokens: int, width: int = WIDTH) -> list[dict[str, Any]]:
    """Rows of the table for a count of tokens; refuses vector spills, leaves out what only moves memory."""
    rows = [row for row, _ in survey(archs, dtypes, tokens=tokens, head_dim=width, heads=HEADS)]
    spilling = [row for row in rows if row["vgpr_spills"]]
    if spilling:
        raise SystemExit(f"vector registers are spilled: {spilling}")
    return [shown(row, tokens, width) for row in rows if row["instructions_per_iteration"]]


def shown(row: Row, tokens: int, width: int) -> dict[str, Any]:
    """A row of the table: who, its blocks, its resources."""
    config = row["config"]
    named = ("block_m", "block_n", "num_warps", "num_stages")
    return (
        {name: row[name] for name in ("arch", "dtype", "kernel")}
        | {"N": tokens, "D": width}
        | {"M, N, warps, stages": ", ".join(str(config.get(name, "-")) for name in named)}
        | resources(row)
    )


def resources(row: Row) -> dict[str, Any]:
    """What a kernel needs and what comes of it."""
    opcodes = " ".join(f"{count} x {name}" for name, count in row["matrix_instructions"].items())
    return (
        {"spills v / s": f"{row['vgpr_spills']} / {row['sgpr_spills']}"}
        | {name: "" if row[name] is None else row[name] for name in COLUMNS}
        | {"matrix instructions": opcodes}
    )


def main() -> None:
    """Print the figures."""
    options = arguments(__doc__)
    if find_llvm_mca() is None:
        raise SystemExit(f"compiled_kernels: eff1 is a count by llvm-mca, but {NO_LLVM_MCA}.")
    archs, dtypes = (["gfx90a"], ["fp32"]) if options.quick else (list(SHARED_BYTES), list(DTYPES))
    rows = compiled(archs, dtypes, EVEN)
    if not options.quick:
        rows += compiled(["gfx90a"], dtypes, RAGGED)
        rows += compiled(list(SHARED_BYTES), ["fp32"], EVEN, WIDER)
    report("compiled_kernels", rows, options)


if __name__ == "__main__":
    main()
