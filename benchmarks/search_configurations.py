"""Search of block sizes and compiler options of the Triton kernels, ranked by their machine code.

    python benchmarks/search_configurations.py --arch gfx90a --dtype bf16 --kernel dq

Every candidate is compiled without a GPU. Candidates that spill registers or have an occupancy below 2 are
excluded. The others are ranked by eff1 on AMD, and by useful FLOP an instruction on NVIDIA. Copy the best of
each kernel to `aqtopo_kernels/elevation_attention/configurations.py`.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import torch

from aqtopo_kernels.aot.mca import find_llvm_mca
from aqtopo_kernels.aot.stand_in import SHARED_BYTES
from aqtopo_kernels.aot.survey import DTYPES, Row, survey
from aqtopo_kernels.elevation_attention.configurations import (
    TABLE,
    TABLE_WIDTH,
    WIDER_TABLE,
    Configuration,
)

KERNELS = ("forward", "dq", "dkdv")


def candidates(kernel: str, arch: str, dtype: str) -> Iterator[Configuration]:
    """Yield the candidates; matrix rows are at most a wavefront's share of the block's rows."""
    moving, kept = (16, 32, 64), (64, 128, 256)
    warps = (4, 8)
    amd = arch.startswith("gfx")
    layouts = (
        [(rows, interleaved) for rows in (16, 32) for interleaved in (False, True)] if amd else [(0, False)]
    )
    kpacks = (1, 2) if amd and dtype == "fp32" else (1,)
    for inner, outer, count, (rows, interleaved), kpack in itertools.product(
        moving, kept, warps, layouts, kpacks
    ):
        if amd and (outer // count < rows or inner < rows):
            continue
        block_m, block_n = (inner, outer) if kernel == "dkdv" else (outer, inner)
        groups = 64 // rows if kernel == "forward" and amd and dtype == "fp32" else 1
        yield Configuration(
            block_m, block_n, count, matrix_rows=rows, interleaved=interleaved, kpack=kpack, groups=groups
        )


@contextmanager
def replaced_in_table(
    candidate: Configuration, kernel: str, arch: str, dtype: str, head_dim: int
) -> Iterator[None]:
    """Replace the configuration for this head width by a candidate, with and without a bias."""
    sizes = (TABLE if head_dim <= TABLE_WIDTH else WIDER_TABLE).setdefault(arch, {})
    size = DTYPES[dtype].itemsize
    chosen = sizes.get(size, {})
    sizes[size] = chosen | {kernel: candidate, f"{kernel}_plain": candidate}
    try:
        yield
    finally:
        sizes[size] = chosen


def measure(
    candidate: Configuration, kernel: str, arch: str, dtype: str, *, head_dim: int, plain: bool
) -> Row | None:
    """Return the candidate's row; None if it needs too much shared memory."""
    from triton.runtime.errors import OutOfResources

    wanted = f"{kernel}_plain" if plain else kernel
    with replaced_in_table(candidate, kernel, arch, dtype, head_dim):
        try:
            rows = survey([arch], [dtype], head_dim=head_dim, heads=8, tokens=8192, only=wanted)
            return next(row for row, _ in rows if row["kernel"] == wanted)
        except OutOfResources:
            return None


def is_usable(row: Row) -> bool:
    """Return true if no register is spilled and two wavefronts fit."""
    return row["vgpr_spills"] == row["sgpr_spills"] == 0 and row["occupancy"] >= 2


def merit(row: Row) -> float:
    """Return eff1 or, if there is none, useful work for each instruction of the loop. Larger is better."""
    if row["eff1"] is not None:
        return float(row["eff1"])
    block = row["config"]["block_m"] * row["config"]["block_n"]
    return float(block / row["config"]["num_warps"] / row["instructions_per_iteration"])


def main() -> int:
    """Print the candidates of each kernel, best first."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", choices=list(SHARED_BYTES), default="gfx90a")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--kernel", nargs="+", choices=KERNELS, default=KERNELS)
    parser.add_argument("--head-dim", type=int, default=96, help="width of a head")
    parser.add_argument("--plain", action="store_true", help="search the kernels without a bias")
    parser.add_argument("--best", type=int, default=5, help="number of candidates to print")
    parser.add_argument("--quick", action="store_true", help="compile only the first four candidates")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.arch.startswith("gfx") and find_llvm_mca() is None:
        print(
            "The search on AMD needs llvm-mca from LLVM 22 or later; install it (Debian: llvm-22).",
            file=sys.stderr,
        )
        return 2
    torch.set_num_threads(1)
    found = []
    for kernel in options.kernel:
        tried = list(candidates(kernel, options.arch, options.dtype))
        found += search(kernel, tried[: 4 if options.quick else None], options)
    if options.json:
        print(json.dumps(found, indent=1))
    return 0


def search(kernel: str, tried: list[Configuration], options: argparse.Namespace) -> list[Row]:
    """Return the best rows of one kernel; print each candidate to stderr."""
    ranked = []
    for candidate in tried:
        row = measure(
            candidate,
            kernel,
            options.arch,
            options.dtype,
            head_dim=options.head_dim,
            plain=options.plain,
        )
        print(kernel, candidate, "does not fit" if row is None else row["eff1"], file=sys.stderr)
        if row is not None and is_usable(row):
            ranked.append((merit(row), row | {"candidate": asdict(candidate)}))
    ranked.sort(key=lambda pair: -pair[0])
    best = ranked[: options.best]
    if not options.json:
        for value, row in best:
            print(
                f"{kernel} {value:.3f} vgprs {row['vgprs']} occupancy {row['occupancy']} {row['candidate']}"
            )
    return [row for _, row in best]


if __name__ == "__main__":
    sys.exit(main())
