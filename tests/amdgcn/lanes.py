"""Vector instructions that move lanes (DPP), take parts of registers (SDWA) or work on pairs of registers."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tests.amdgcn import numerics
from tests.amdgcn.assembly import EmulationError, Instruction
from tests.amdgcn.operands import F32, LANE, U32, Lanes, floats, lanes, lanes_of, put_lanes, row, scalar_pair
from tests.amdgcn.rules import FLOAT_RULES, INTEGER_RULES

if TYPE_CHECKING:
    from tests.amdgcn.wave import Wave

Action = Callable[["Wave"], None]
_ROW, _COLUMN = LANE // 16, LANE % 16


def dpp(instruction: Instruction) -> Action:
    """Return the action of an instruction whose first source comes from other lanes."""
    modifiers = dict(instruction.modifiers)
    rows, banks = (int(modifiers.pop(f"{name}_mask", "0xf"), 0) for name in ("row", "bank"))
    zero_outside = modifiers.pop("bound_ctrl", None) is not None
    ((kind, value),) = modifiers.items()
    source, valid = _moved(kind, value)
    enabled = (rows >> _ROW & 1 == 1) & (banks >> _COLUMN // 4 & 1 == 1)
    target, first, *others = instruction.operands
    place, get, more = row(target), lanes(first), [lanes(operand) for operand in others]
    compute = _rule(instruction.mnemonic)

    def run(wave: "Wave") -> None:
        inside = valid & wave.active[source]
        moved = np.where(inside, np.broadcast_to(get(wave), 64)[source], U32(0))
        value = compute(moved, *[each(wave) for each in more])
        np.copyto(wave.vector[place], value, where=wave.active & enabled & (inside | zero_outside))

    return run


def _moved(kind: str, value: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return for each lane the lane that it reads, and where one exists."""
    everywhere = np.ones(64, bool)
    if kind == "quad_perm":
        order = np.array([int(x) for x in value.strip("[]").split(",")])
        return LANE // 4 * 4 + order[LANE % 4], everywhere
    count = int(value)
    if kind == "row_bcast":  # the last lane of a row (15) or of two rows (31), for those behind it
        return np.clip(LANE // (count + 1) * (count + 1) - 1, 0, 63), count < LANE
    column = {
        "row_shl": _COLUMN + count,
        "row_shr": _COLUMN - count,
        "row_ror": (_COLUMN - count) % 16,
        "row_newbcast": np.full(64, count),
    }[kind]
    return _ROW * 16 + np.clip(column, 0, 15), (column >= 0) & (column < 16)


def _rule(name: str) -> Callable[..., Lanes]:
    if name in INTEGER_RULES:
        return INTEGER_RULES[name]
    if name not in FLOAT_RULES:
        raise EmulationError(f"unknown instruction {name}")
    rule = FLOAT_RULES[name]
    return lambda *sources: rule(*[source.view(F32) for source in sources]).view(U32)


def sdwa(instruction: Instruction) -> Action:
    """Return the action of an instruction whose sources are bytes or words of registers."""
    instruction.allow("dst_sel", "dst_unused", "src0_sel", "src1_sel")
    if instruction.modifiers.get("dst_sel", "DWORD") != "DWORD":
        raise EmulationError("a part of a register as destination is not supported")
    target, *sources = instruction.operands
    put = put_lanes(row(target))
    gets = [
        _part(lanes(operand), instruction.modifiers.get(f"src{i}_sel", "DWORD"))
        for i, operand in enumerate(sources[:2])
    ]
    if instruction.mnemonic == "v_cndmask_b32":
        mask = scalar_pair(sources[2])
        return lambda wave: put(wave, np.where(lanes_of(mask(wave)), gets[1](wave), gets[0](wave)))
    compute = INTEGER_RULES[instruction.mnemonic]
    return lambda wave: put(wave, compute(*[get(wave) for get in gets]))


def _part(get: Callable[["Wave"], Lanes], selected: str) -> Callable[["Wave"], Lanes]:
    if selected == "DWORD":
        return get
    kind, index = re.fullmatch(r"(WORD|BYTE)_(\d)", selected).groups()
    width = 16 if kind == "WORD" else 8
    shift, mask = U32(int(index) * width), U32((1 << width) - 1)
    return lambda wave: get(wave) >> shift & mask


def packed(instruction: Instruction) -> Action:
    """Return the action of an instruction on pairs of registers, or of halves."""
    name, (target, *sources) = instruction.mnemonic, instruction.operands
    if name == "v_pk_add_f16":
        return _packed_half(instruction)
    instruction.allow("op_sel", "op_sel_hi", "neg_lo", "neg_hi")
    count = len(sources)
    puts = [put_lanes(row(target) + part) for part in (0, 1)]
    parts = [instruction.switches("op_sel", count, 0), instruction.switches("op_sel_hi", count, 1)]
    if name == "v_pk_mov_b32":  # op_sel chooses the half of the first source, and of the second
        copies = [lanes(sources[i], parts[0][i]) for i in (0, 1)]
        return _put_both(puts, lambda wave: [np.copy(get(wave)) for get in copies])
    rules: dict[str, Callable[..., Any]] = {
        "v_pk_mul_f32": np.multiply, "v_pk_add_f32": np.add, "v_pk_fma_f32": numerics.fma,
    }  # fmt: skip
    if name not in rules:
        raise EmulationError(f"unknown instruction {name}")
    compute = rules[name]
    signs = [instruction.switches(f"neg_{half}", count, 0) for half in ("lo", "hi")]
    gets = [
        [floats("-" * negative + source, part) for source, part, negative in zip(sources, *each, strict=True)]
        for each in zip(parts, signs, strict=True)
    ]

    def values(wave: "Wave") -> list[Lanes]:
        return [np.asarray(compute(*[get(wave) for get in half]), F32).view(U32) for half in gets]

    return _put_both(puts, values)


def _put_both(puts: list[Callable[["Wave", Lanes], None]], values: Callable[["Wave"], list[Lanes]]) -> Action:
    def run(wave: "Wave") -> None:
        for put, value in zip(puts, values(wave), strict=True):
            put(wave, value)

    return run


def _packed_half(instruction: Instruction) -> Action:
    instruction.allow()
    target, *sources = instruction.operands
    put, gets = put_lanes(row(target)), [lanes(source) for source in sources]

    def run(wave: "Wave") -> None:
        left, right = (np.array(np.broadcast_to(get(wave), 64)).view(np.float16) for get in gets)
        put(wave, (left + right).view(U32))

    return run
