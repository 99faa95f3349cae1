"""Block sizes and compiler options of each kernel, fixed for each architecture and dtype.

There is no autotuning: it would take minutes to an hour at the start of a job with 400 ranks. `TABLE` is the
result of `benchmarks/search_configurations.py` for D = 96, which reads machine code. `WIDER_TABLE` is the
best of a few of its candidates for D = 112.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

Kernel = Literal["forward", "dq", "dkdv"]
WIDEST_HEAD = 256


@dataclass(frozen=True)
class Configuration:
    """Block sizes and compiler options of one kernel.

    Attributes:
        block_m: query rows of a block of scores.
        block_n: keys of a block of scores.
        num_warps: wavefronts (64 lanes on AMD, 32 on NVIDIA) per program.
        num_stages: stages of the loop's software pipeline.
        matrix_rows: M of the matrix instruction, 16 or 32 (AMD only).
        interleaved: AMD's scheduling of exponentials between matrix instructions (its "attention" hint).
        kpack: operands of a matrix instruction that a lane reads from LDS at once (AMD only).
        groups: column distance in the second operand of the matrix unit (see `_regroup`); 1 for none.
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
        """Return the compiler options; fused multiply-adds are explicit, as their default may change."""
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
# With the blocks above, dq needs more than 256 registers on gfx942.
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
"""Configurations by architecture, element size [bytes] and kernel; `_plain` kernels have no bias."""


TABLE_WIDTH = 96
"""Head width of the search for `TABLE`."""

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
"""Configurations for heads wider than `TABLE_WIDTH` where `TABLE` spills registers or leaves a SIMD idle. The
model's local bias widens heads from 96 to 112 columns."""

_WIDEST_IN_TABLE = {4: 112, 2: 128}
"""Widest head whose blocks of the table fit into LDS (64 KiB on AMD), by element size [bytes]."""

_WIDE_HEADS: _Choices = {"forward": _C(64, 16, 4), "dq": _C(32, 16, 2), "dkdv": _C(16, 32, 2)}
"""Configurations for still wider heads: they fit into LDS, are not tuned, and spill near 256 columns."""


def configuration(
    kernel: Kernel, dtype: torch.dtype, arch: str, head_dim: int = 96, *, plain: bool = False
) -> Configuration:
    """Return the configuration of a kernel; heads wider than the table's get blocks that fit."""
    choices = TABLE[arch][dtype.itemsize]
    if head_dim > TABLE_WIDTH:
        choices = choices | WIDER_TABLE.get(arch, {}).get(dtype.itemsize, {})
    found = choices.get(f"{kernel}_plain", choices[kernel]) if plain else choices[kernel]
    if head_dim <= _WIDEST_IN_TABLE[dtype.itemsize]:
        return found
    matrix_rows = 16 if arch.startswith("gfx") else 0
    return replace(_WIDE_HEADS[kernel], matrix_rows=matrix_rows, groups=1)


def parts(head_dim: int) -> tuple[tuple[int, int], ...]:
    """Split a head into powers of two, as first column and width: 96 is (0, 64) and (64, 32).

    Raises:
        ValueError: the width is not a multiple of 16 up to 256.
    """
    if head_dim % 16 or not 0 < head_dim <= WIDEST_HEAD:
        raise ValueError(
            f"The Triton kernels take heads whose width D is a multiple of 16 up to {WIDEST_HEAD}, but got "
            f"D = {head_dim}; choose another width, or the reference implementation."
        )
    # No part is wider than 128, because each part passes through LDS separately.
    widths = [128] * (head_dim // 128) + [width for width in (64, 32, 16) if head_dim & width]
    return tuple((sum(widths[:i]), width) for i, width in enumerate(widths))
