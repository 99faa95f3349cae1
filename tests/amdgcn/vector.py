"""Vector instructions: the same operation in each active lane."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.amdgcn import lanes as across
from tests.amdgcn import numerics
from tests.amdgcn.assembly import EmulationError, Instruction
from tests.amdgcn.operands import (
    F32,
    U32,
    VCC,
    floats,
    lanes,
    lanes_of,
    mask_of,
    put_lanes,
    put_scalar,
    put_scalar_pair,
    registers,
    row,
    scalar,
    scalar_pair,
)
from tests.amdgcn.rules import COMPARISONS, FLOAT_RULES, INTEGER_RULES

if TYPE_CHECKING:
    from tests.amdgcn.wave import Wave

Action = Callable[["Wave"], None]


def action(instruction: Instruction) -> Action:
    """Return the action of a vector instruction."""
    name = instruction.mnemonic
    if instruction.encoding == "dpp":
        return across.dpp(instruction)
    if instruction.encoding == "sdwa":
        return across.sdwa(instruction)
    if name in _OTHERS:
        return _OTHERS[name](instruction)
    if name in INTEGER_RULES:
        return _integer(instruction)
    if name in FLOAT_RULES:
        return _float(instruction, instruction.operands[1:])
    if name.startswith("v_cmp_"):
        return _compare(instruction)
    if name.startswith("v_pk_"):
        return across.packed(instruction)
    raise EmulationError(f"unknown instruction {name}")


def _integer(instruction: Instruction) -> Action:
    instruction.allow()
    put, rule = put_lanes(row(instruction.operands[0])), INTEGER_RULES[instruction.mnemonic]
    gets = [lanes(operand) for operand in instruction.operands[1:]]
    return lambda wave: put(wave, rule(*[get(wave) for get in gets]))


def _float(
    instruction: Instruction, sources: tuple[str, ...], rule: Callable[..., Any] | None = None
) -> Action:
    instruction.allow("clamp")
    put = put_lanes(row(instruction.operands[0]))
    compute = rule or FLOAT_RULES[instruction.mnemonic]
    gets = [floats(operand) for operand in sources]
    clamp = "clamp" in instruction.modifiers

    def run(wave: "Wave") -> None:
        value = np.asarray(compute(*[get(wave) for get in gets]), F32)
        if clamp:  # NaN becomes 0, as in the mode (DX10_CLAMP) that Triton sets
            value = np.fmin(np.fmax(value, F32(0)), F32(1))
        put(wave, value.view(U32))

    return run


def _compare(instruction: Instruction) -> Action:
    instruction.allow()
    _, _, relation, kind = instruction.mnemonic.split("_")
    holds, put = COMPARISONS[relation], put_scalar_pair(instruction.operands[0])
    view = {"f32": F32, "i32": np.int32, "u32": U32}[kind]
    left, right = (lanes(operand) for operand in instruction.operands[1:])

    def run(wave: "Wave") -> None:
        found = np.broadcast_to(holds(left(wave).view(view), right(wave).view(view)), 64)
        put(wave, mask_of(found & wave.active))

    return run


def _multiply_add(instruction: Instruction) -> Action:
    return _float(instruction, (*instruction.operands[1:], instruction.operands[0]), numerics.fma)


def _select(instruction: Instruction) -> Action:
    instruction.allow()
    target, false, true, mask = instruction.operands
    put, zeros, ones, chosen = put_lanes(row(target)), lanes(false), lanes(true), scalar_pair(mask)
    return lambda wave: put(wave, np.where(lanes_of(chosen(wave)), ones(wave), zeros(wave)))


def _move_pair(instruction: Instruction) -> Action:
    instruction.allow()
    target, source = instruction.operands
    puts = [put_lanes(row(target) + part) for part in (0, 1)]
    gets = [lanes(source, part) for part in (0, 1)]

    def run(wave: "Wave") -> None:
        values = [np.copy(get(wave)) for get in gets]
        for put, value in zip(puts, values, strict=True):
            put(wave, value)

    return run


def _multiply_add_wide(instruction: Instruction) -> Action:
    instruction.allow()
    target, carry, left, right, addend = instruction.operands
    low, high = (put_lanes(row(target) + part) for part in (0, 1))
    unknown = registers(addend)
    put_carry, gets = put_scalar_pair(carry), [lanes(left), lanes(right), lanes(addend, 0), lanes(addend, 1)]

    def run(wave: "Wave") -> None:
        x, y, lower, upper = (np.asarray(get(wave), np.uint64) for get in gets)
        product = x * y
        total = product + (lower | upper << np.uint64(32))
        put_carry(wave, mask_of(np.broadcast_to(total < product, 64) & wave.active))
        low(wave, total.astype(U32))
        high(wave, (total >> np.uint64(32)).astype(U32))
        if unknown and not wave.unwritten.isdisjoint(unknown.ids):
            wave.unwritten.add(row(target) + 1)

    return run


def _read_lane(instruction: Instruction) -> Action:
    """Copy a lane to a scalar register: the lane of that number, or the first active one."""
    instruction.allow()
    put, get = put_scalar(instruction.operands[0]), lanes(instruction.operands[1])
    number = scalar(instruction.operands[2]) if instruction.mnemonic == "v_readlane_b32" else None

    def run(wave: "Wave") -> None:
        lane = int(np.argmax(wave.active)) if number is None else number(wave) & 63
        put(wave, int(np.broadcast_to(get(wave), 64)[lane]))

    return run


def _divide_scale(instruction: Instruction) -> Action:
    instruction.allow()
    put, put_flags = put_lanes(row(instruction.operands[0])), put_scalar_pair(instruction.operands[1])
    gets = [floats(operand) for operand in instruction.operands[2:]]

    def run(wave: "Wave") -> None:
        value, denominator, numerator = (np.broadcast_to(get(wave), 64) for get in gets)
        numerics.check_division(wave.active, denominator, numerator)
        put_flags(wave, 0)
        put(wave, value.view(U32))

    return run


def _divide_multiply_add(instruction: Instruction) -> Action:
    multiply_add = _float(instruction, instruction.operands[1:], numerics.fma)

    def run(wave: "Wave") -> None:
        if (wave.scalar[VCC] | wave.scalar[VCC + 1] << 32) & wave.exec:
            raise EmulationError("a division with operands that need scaling is not supported")
        multiply_add(wave)

    return run


def _mixed(instruction: Instruction) -> Action:
    """Multiply and add operands of which each is a float32 or half of a register."""
    instruction.allow("op_sel", "op_sel_hi")
    name, target = instruction.mnemonic, row(instruction.operands[0])
    upper, halves = instruction.switches("op_sel", 3, 0), instruction.switches("op_sel_hi", 3, 0)

    def source(operand: str, is_half: int, is_upper: int) -> Callable[["Wave"], Any]:
        if not is_half:
            return floats(operand)
        get = lanes(operand)
        return lambda wave: numerics.from_half(get(wave) >> U32(16 * is_upper))

    gets = [source(*each) for each in zip(instruction.operands[1:], halves, upper, strict=True)]
    put = put_lanes(target)

    def run(wave: "Wave") -> None:
        value = np.broadcast_to(numerics.fma(*[get(wave) for get in gets]), 64)
        if name == "v_fma_mix_f32":
            put(wave, value.view(U32))
        elif name == "v_fma_mixlo_f16":
            put(wave, wave.vector[target] & U32(0xFFFF0000) | numerics.to_half(value))
        else:
            assert name == "v_fma_mixhi_f16"
            put(wave, wave.vector[target] & U32(0xFFFF) | numerics.to_half(value) << U32(16))

    return run


_OTHERS: dict[str, Callable[[Instruction], Action]] = {
    "v_fmac_f32": _multiply_add,
    "v_cndmask_b32": _select,
    "v_mov_b64": _move_pair,
    "v_mad_u64_u32": _multiply_add_wide,
    "v_readfirstlane_b32": _read_lane,
    "v_readlane_b32": _read_lane,
    "v_div_scale_f32": _divide_scale,
    "v_div_fmas_f32": _divide_multiply_add,
    "v_fma_mix_f32": _mixed,
    "v_fma_mixlo_f16": _mixed,
    "v_fma_mixhi_f16": _mixed,
}
