"""Matrix instructions (MFMA) with one block: 32 x 32 or 16 x 16 results.

A lane holds elements of one row of A and of one column of B; the groups of 32 or 16 lanes hold successive
parts of K. A lane's results are in one column, in runs of four rows; see `operand` and `_places`, and AMD's
matrix instruction calculator for the layouts.

CDNA2 replaces denormals of 16 bits in the operands, and denormal results, by zeros
(https://rocm.docs.amd.com/projects/MIOpen/en/latest/MI200AlternateImplementation.html).
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tests.amdgcn.assembly import EmulationError, Instruction
from tests.amdgcn.numerics import TINY, flush, from_half
from tests.amdgcn.operands import F32, LANE, U32, Floats, registers, row

if TYPE_CHECKING:
    from tests.amdgcn.wave import Wave

_SMALLEST = {"bf16": TINY, "f16": F32(np.finfo(np.float16).tiny)}
_SIZES = {"f32": {32: 2, 16: 4}, "bf16": {32: 8, 16: 16}, "f16": {32: 8, 16: 16}}
"""K of the instructions with one block, by type and M."""


def action(instruction: Instruction) -> Callable[["Wave"], None]:
    """Return the action of a matrix instruction; all lanes take part, whatever `exec` says."""
    instruction.allow()
    shape = re.fullmatch(r"v_mfma_f32_(\d+)x(\d+)x(\d+)_?(f32|bf16|f16)(_1k)?", instruction.mnemonic)
    if shape is None or shape[1] != shape[2] or _SIZES[shape[4]].get(int(shape[1])) != int(shape[3]):
        raise EmulationError(f"unknown instruction {instruction.mnemonic}")
    m, k, kind = int(shape[1]), int(shape[3]), shape[4]
    target, left, right, addend = instruction.operands
    place, first, second = row(target), row(left), row(right)
    third = row(addend) if registers(addend) else None
    if third is None and addend != "0":
        raise EmulationError("a constant other than 0 is not supported as addend")
    rows, columns = _places(m)
    count = m * m // 64

    def run(wave: "Wave") -> None:
        a, b = (operand(wave, start, m, k, kind) for start in (first, second))
        out = (a.astype(np.float64) @ b.astype(np.float64).T)[rows, columns]
        if third is not None:
            out = out + wave.vector[third : third + count].view(F32)
        result = out.astype(F32)
        if kind != "f32" and wave.flushes:
            result = flush(result)
        wave.vector[place : place + count] = result.view(U32)

    return run


def operand(wave: "Wave", first: int, m: int, k: int, kind: str) -> Floats:
    """Return an operand as (M, K): lane l holds K / (64 / M) successive elements of row l % M."""
    groups = 64 // m
    each = k // groups
    if kind == "f32":
        held = wave.vector[first].view(F32)[:, None]
    else:
        words = wave.vector[first : first + each // 2].T
        bits = np.stack([words & U32(0xFFFF), words >> U32(16)], -1).reshape(64, each)
        held = from_half(bits) if kind == "f16" else (bits << U32(16)).view(F32)
        if wave.flushes:
            held = np.where(np.abs(held) < _SMALLEST[kind], F32(0), held)
    return held.reshape(groups, m, each).transpose(1, 0, 2).reshape(m, k)


def _places(m: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return row and column of each result (register, lane)."""
    lane, register = np.meshgrid(LANE, np.arange(m * m // 64))
    return 4 * (64 // m) * (register // 4) + 4 * (lane // m) + register % 4, lane % m
