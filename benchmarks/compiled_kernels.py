"""The Triton kernels as compiled for AMD and NVIDIA GPUs, none of which is needed: what their code tells.

Rows are those of `python -m aqtopo_kernels.aot`, whose `eff1` is the share of clocks in which a wave keeps
the matrix unit busy with useful work, as llvm-mca counts them. A spilled vector register ends the run. A
count of tokens that no block divides costs every block its masks: the last rows show it for gfx90a.
"""

from typing import Any

from aqtopo_kernels.aot.mca import find_llvm_mca
from aqtopo_kernels.aot.stand_in import SHARED_BYTES
from aqtopo_kernels.aot.survey import DTYPES, Row, survey
from benchmarks.measure import arguments, report

SHAPE = {"head_dim": 96, "heads": 8}
EVEN, RAGGED = 8192, 8191
COLUMNS = ("vgprs", "agprs", "lds_bytes", "occupancy", "instructions_per_iteration", "useful", "eff1")


def compiled(archs: list[str], dtypes: list[str], tokens: int) -> list[dict[str, Any]]:
    """Rows of the table for a count of tokens; refuses vector spills, leaves out what only moves memory."""
    rows = [row for row, _ in survey(archs, dtypes, tokens=tokens, **SHAPE)]
    spilling = [row for row in rows if row["vgpr_spills"]]
    if spilling:
        raise SystemExit(f"vector registers are spilled: {spilling}")
    return [shown(row, tokens) for row in rows if row["instructions_per_iteration"]]


def shown(row: Row, tokens: int) -> dict[str, Any]:
    """A row of the table: who, its blocks, its resources."""
    config = row["config"]
    named = ("block_m", "block_n", "num_warps", "num_stages")
    return (
        {name: row[name] for name in ("arch", "dtype", "kernel")}
        | {"N": tokens}
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
        raise SystemExit("No llvm-mca (Debian: llvm-22), and eff1 is its count of clocks; install it.")
    archs, dtypes = (["gfx90a"], ["fp32"]) if options.quick else (list(SHARED_BYTES), list(DTYPES))
    rows = compiled(archs, dtypes, EVEN)
    if not options.quick:
        rows += compiled(["gfx90a"], dtypes, RAGGED)
    report("compiled_kernels", rows, options)


if __name__ == "__main__":
    main()
