"""Block sizes and compiler options of each kernel, fixed for each architecture and dtype.

No autotuning: 400 ranks that tune at the start of a job take minutes to an hour. `TABLE` is what
`benchmarks/search_configurations.py` finds for D = 96 by reading machine code, `WIDER_TABLE` the best of a
few of its candidates for D = 112.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

Kernel = Literal["forward", "dq", "dkdv"]
WIDEST_HEAD = 256


@dataclass(frozen=True)
class Configuration:
    """How one kernel is compiled.

    Attributes:
        block_m: query rows of a block of scores.
        block_n: keys of a block of scores.
        num_warps: wavefronts (64 lanes on AMD, 32 on NVIDIA) a program.
        num_stages: how many blocks of the loop are in flight.
        matrix_rows: M of the matrix instruction, 16 or 32 (AMD only).
        interleaved: AMD's scheduling of exponentials between matrix instructions (its "attention" hint).
        kpack: how many operands of a matrix instruction a lane reads from LDS at once (AMD only).
        groups: how many columns apart the matrix unit takes its second operand (see `_regroup`); 1: leave it.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int = 2
    matrix_rows: int = 0
    interleaved: bool = False
    groups: int = 1
    kpack: int = 1

    def options(self, arch: str) -> dict[str, Any]:
        """What the compiler is told; fused multiply-adds are on by name, as their default may change."""
        options: dict[str, Any] = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        options["enable_fp_fusion"] = True
        if arch.startswith("gfx"):
            options["matrix_instr_nonkdim"] = self.matrix_rows
            options["kpack"] = self.kpack
            options["schedule_hint"] = "attention" if self.interleaved else "none"
        return options


_C = Configuration
_Choices = dict[str, Configuration]
_CDNA_FLOAT32: _Choices = {
    "forward": _C(256, 32, 8, matrix_rows=32, interleaved=True, groups=2, kpack=2),
    "forward_plain": _C(256, 64, 8, matrix_rows=32, interleaved=True, groups=2),
    "dq": _C(64, 32, 4, matrix_rows=16, interleaved=True),
    "dkdv": _C(16, 128, 8, matrix_rows=16, interleaved=True),
}
_CDNA_HALF: _Choices = {
    "forward": _C(256, 32, 8, matrix_rows=32, interleaved=True),
    "dq": _C(128, 32, 4, matrix_rows=32, interleaved=True),
    "dkdv": _C(32, 64, 4, matrix_rows=16, interleaved=True),
}
# With the blocks above, gfx942 needs over 256 registers for dq.
_CDNA3_FLOAT32: _Choices = {"dq": _C(64, 16, 4, matrix_rows=16)}
_CDNA3_HALF: _Choices = {"dq": _C(64, 32, 4, matrix_rows=16, interleaved=True)}
_NVIDIA_FLOAT32: _Choices = {
    "forward": _C(64, 32, 8),
    "dq": _C(32, 32, 8),
    "dkdv": _C(32, 32, 8),
}
_AMPERE_HALF: _Choices = {
    "forward": _C(128, 64, 8),
    "dq": _C(128, 32, 8),
    "dkdv": _C(32, 128, 8),
}
_HOPPER_HALF: _Choices = {
    "forward": _C(128, 64, 8),
    "dq": _C(128, 64, 8),
    "dkdv": _C(64, 128, 8),
}

Table = dict[str, dict[int, _Choices]]

TABLE: Table = {
    "gfx90a": {4: _CDNA_FLOAT32, 2: _CDNA_HALF},
    "gfx942": {4: _CDNA_FLOAT32 | _CDNA3_FLOAT32, 2: _CDNA_HALF | _CDNA3_HALF},
    "sm_80": {4: _NVIDIA_FLOAT32, 2: _AMPERE_HALF},
    "sm_90": {4: _NVIDIA_FLOAT32, 2: _HOPPER_HALF},
}
"""By architecture, bytes of an element and kernel; `_plain` kernels, without bias, where they differ."""


TABLE_WIDTH = 96
"""Columns of a head that `TABLE` was searched for."""

_CDNA_FLOAT32_WIDER: _Choices = {
    "forward": _C(128, 32, 8, matrix_rows=16, interleaved=True, groups=4),
    "forward_plain": _C(128, 32, 8, matrix_rows=16, interleaved=True, groups=4),
    "dq": _C(64, 16, 4, matrix_rows=16, interleaved=True),
}
_HOPPER_FLOAT32_WIDER: _Choices = {"forward": _C(64, 16, 8), "forward_plain": _C(64, 32, 8)}
WIDER_TABLE: Table = {
    "gfx90a": {4: _CDNA_FLOAT32_WIDER},
    "gfx942": {4: _CDNA_FLOAT32_WIDER},
    "sm_90": {4: _HOPPER_FLOAT32_WIDER},
}
"""What heads wider than that take instead, where its blocks spill registers or leave a SIMD idle: such as the
112 columns that the model's local bias makes of 96."""

_WIDEST_IN_TABLE = {4: 112, 2: 128}
"""Bytes an element to the widest head that the table's blocks leave room for in LDS (64 KiB on AMD)."""

_WIDE_HEADS: _Choices = {"forward": _C(64, 16, 4), "dq": _C(32, 16, 2), "dkdv": _C(16, 32, 2)}
"""For wider heads, on any architecture: they fit into LDS, are not tuned, and spill registers near 256."""


def configuration(
    kernel: Kernel, dtype: torch.dtype, arch: str, head_dim: int = 96, *, plain: bool = False
) -> Configuration:
    """The configuration of a kernel; heads wider than the table's get blocks that fit."""
    choices = TABLE[arch][dtype.itemsize]
    if head_dim > TABLE_WIDTH:
        choices = choices | WIDER_TABLE.get(arch, {}).get(dtype.itemsize, {})
    found = choices.get(f"{kernel}_plain", choices[kernel]) if plain else choices[kernel]
    if head_dim <= _WIDEST_IN_TABLE[dtype.itemsize]:
        return found
    matrix_rows = 16 if arch.startswith("gfx") else 0
    return replace(_WIDE_HEADS[kernel], matrix_rows=matrix_rows, groups=1)


def parts(head_dim: int) -> tuple[tuple[int, int], ...]:
    """First column and width of the powers of two that make up a head: 96 is (0, 64) and (64, 32).

    Raises:
        ValueError: not a multiple of 16 up to 256.
    """
    if head_dim % 16 or not 0 < head_dim <= WIDEST_HEAD:
        raise ValueError(
            f"The Triton kernels take heads whose width D is a multiple of 16 up to {WIDEST_HEAD}, but got "
            f"D = {head_dim}; choose dim and heads accordingly, or ask for the reference."
        )
    # No part is wider than 128: each passes through LDS on its own.
    widths = [128] * (head_dim // 128) + [width for width in (64, 32, 16) if head_dim & width]
    return tuple((sum(widths[:i]), width) for i, width in enumerate(widths))
