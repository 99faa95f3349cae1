"""`python -m aqtopo_kernels.aot`: compile every kernel without a GPU, print an analysis, fill a cache."""

# ruff: noqa: T201 - this is a command

import argparse
import errno
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryFile, gettempdir

from triton import knobs

from aqtopo_kernels.aot.mca import find_llvm_mca
from aqtopo_kernels.aot.stand_in import SHARED_BYTES
from aqtopo_kernels.aot.survey import DTYPES, Row, survey
from aqtopo_kernels.elevation_attention.configurations import parts

_COLUMNS = {
    "kernel": 16,
    "dtype": 5,
    "arch": 6,
    "vgprs": 5,
    "agprs": 5,
    "vgpr_spills": 11,
    "sgpr_spills": 11,
    "lds_bytes": 9,
    "occupancy": 9,
    "instructions_per_iteration": 12,
    "useful": 6,
    "eff1": 6,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command; invalid options exit with code 2, as argparse does."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if problem := _problem(options):
        parser.error(problem)
    if options.out:
        knobs.cache.dir = str(options.out)
    if find_llvm_mca() is None and any(arch.startswith("gfx") for arch in options.arch):
        print("No llvm-mca (Debian: llvm-22): eff1 is left empty.", file=sys.stderr)
    try:
        rows = _compile(options)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        where = f"{knobs.cache.dir} and, for NVIDIA, to {gettempdir()}"
        parser.error(f"no space for the compiled kernels ({error.strerror}); they are written to {where}")
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        _print(rows)
    if options.out:
        print(_ADVICE.format(out=options.out, tokens=options.tokens), file=sys.stderr)
    return 0


_ADVICE = """Set TRITON_CACHE_DIR to a copy of {out} on each node; then no rank compiles at job start.
The cache's keys include a hash of Triton: fill it inside the container of the job.
It is valid for token counts with the same divisibility as {tokens} by 16 and by the kernels' blocks."""

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Errors of a full disk, an exceeded quota and an exceeded file size limit."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m aqtopo_kernels.aot", description=__doc__)
    parser.add_argument("--arch", nargs="+", choices=list(SHARED_BYTES), default=list(SHARED_BYTES))
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument(
        "--head-dim", type=int, default=96, help="width of a head; a multiple of 16 up to 256"
    )
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument(
        "--tokens", type=int, default=8192, help="only its divisibility matters: by 16 and by blocks"
    )
    parser.add_argument("--json", action="store_true", help="print a list of objects and nothing else")
    parser.add_argument("--out", type=Path, help="a Triton cache to fill, for TRITON_CACHE_DIR")
    return parser


def _problem(options: argparse.Namespace) -> str | None:
    """Return the problem with the options that argparse does not detect; None if there is none."""
    if knobs.runtime.interpret:
        return "TRITON_INTERPRET is set, and the interpreter does not compile; unset it"
    for name in ("heads", "tokens"):
        if getattr(options, name) < 1:
            return f"argument --{name} {getattr(options, name)}: must be at least 1"
    try:
        parts(options.head_dim)
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=options.out).close()
    except ValueError as error:
        return f"argument --head-dim: {error}"
    except OSError as error:
        return f"argument --out {options.out}: not a folder that can be written ({error.strerror})"
    return None


def _compile(options: argparse.Namespace) -> list[Row]:
    """Return all rows; print progress to stderr, because compiling a kernel takes seconds."""
    rows = []
    sizes = {"head_dim": options.head_dim, "heads": options.heads, "tokens": options.tokens}
    for row, compilation in survey(
        options.arch, options.dtype, **sizes, all_variants=options.out is not None
    ):
        how = "cached" if compilation.cached else "compiled"
        print(f"{how} {row['kernel']} {row['dtype']} {row['arch']}", file=sys.stderr)
        rows.append(row)
    return rows


def _print(rows: Iterable[Row]) -> None:
    def line(cells: dict[str, object]) -> str:
        return " ".join(f"{cells[name]!s:>{width}}" for name, width in _COLUMNS.items())

    print(
        line({name: name.replace("instructions_per_iteration", "instructions") for name in _COLUMNS}),
        "matrix instructions",
    )
    for row in rows:
        cells = {name: "" if row[name] is None else row[name] for name in _COLUMNS}
        print(line(cells), " ".join(f"{count}x{name}" for name, count in row["matrix_instructions"].items()))


if __name__ == "__main__":
    sys.exit(main())
