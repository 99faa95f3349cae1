"""Scalar instructions: arithmetic, branches, waits and loads of arguments."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from tests.amdgcn.assembly import EmulationError, Instruction
from tests.amdgcn.operands import (
    DOUBLE_WORD,
    VCC,
    WORD,
    put_scalar,
    put_scalar_pair,
    registers,
    scalar,
    scalar_pair,
)

if TYPE_CHECKING:
    from tests.amdgcn.wave import Wave

Result = tuple[int, bool | None]
"""Value, and the new scc; None leaves scc as it is."""

END, BARRIER = -1, -2
_NOTHING = ("s_nop", "s_setprio", "s_sched_barrier")


def action(instruction: Instruction, labels: dict[str, int]) -> Callable[["Wave"], int | None]:
    """Return the action of a scalar instruction."""
    name, operands = instruction.mnemonic, instruction.operands
    instruction.allow()
    if name in _NOTHING:
        return lambda wave: None
    if name in ("s_endpgm", "s_barrier"):
        return lambda wave: END if name == "s_endpgm" else BARRIER
    if name == "s_waitcnt":
        return _wait(operands)
    if name.startswith(("s_branch", "s_cbranch")):
        return _branch(name, labels[operands[0]])
    if name.startswith("s_load_"):
        return _load(instruction)
    if name.startswith(("s_cmp_", "s_bitcmp")):
        return _compare(name, operands)
    if name.endswith("saveexec_b64"):
        return _save_exec(name, operands)
    if name in _RULES or name in _CONDITIONAL:
        return _compute(name, operands)
    raise EmulationError(f"unknown instruction {name}")


def _wait(operands: tuple[str, ...]) -> Callable[["Wave"], None]:
    counts: dict[str, int] = {}
    for operand in operands:
        counter = re.fullmatch(r"(vmcnt|lgkmcnt)\((\d+)\)", operand)
        if counter is None:
            raise EmulationError(f"unknown counter {operand}")
        counts[counter[1]] = int(counter[2])
    memory, lds = counts.get("vmcnt"), counts.get("lgkmcnt")
    return lambda wave: wave.wait(memory, lds)


def _branch(name: str, target: int) -> Callable[["Wave"], int | None]:
    conditions: dict[str, Callable[[Wave], bool]] = {
        "s_branch": lambda wave: True,
        "s_cbranch_scc0": lambda wave: not wave.scc,
        "s_cbranch_scc1": lambda wave: bool(wave.scc),
        "s_cbranch_vccz": lambda wave: not (wave.scalar[VCC] | wave.scalar[VCC + 1]),
        "s_cbranch_vccnz": lambda wave: bool(wave.scalar[VCC] | wave.scalar[VCC + 1]),
        "s_cbranch_execz": lambda wave: not wave.exec,
        "s_cbranch_execnz": lambda wave: bool(wave.exec),
    }
    holds = conditions[name]
    return lambda wave: target if holds(wave) else None


def _load(instruction: Instruction) -> Callable[["Wave"], None]:
    target, base, offset = instruction.operands
    place, start, shift = registers(target), scalar_pair(base), scalar(offset)
    assert place is not None
    words, ids = place.count, frozenset(place.ids)

    def run(wave: "Wave") -> None:
        at = np.array([(start(wave) + shift(wave)) & ~3])
        loaded = wave.memory.load(at, 4 * words)
        wave.scalar[place.first : place.first + words] = [int(word) for word in loaded[:, 0]]
        wave.start_lds(ids, any_order=True)

    return run


def _compare(name: str, operands: tuple[str, ...]) -> Callable[["Wave"], None]:
    left, right = (scalar(operand) for operand in operands)
    if name.startswith("s_bitcmp"):
        wanted = int(name[len("s_bitcmp")])

        def compare_bit(wave: "Wave") -> None:
            wave.scc = int(left(wave) >> (right(wave) & 31) & 1 == wanted)

        return compare_bit
    _, _, relation, kind = name.split("_")
    compare = {
        "lt": int.__lt__, "le": int.__le__, "gt": int.__gt__,
        "ge": int.__ge__, "eq": int.__eq__, "lg": int.__ne__,
    }[relation]  # fmt: skip
    convert = _signed if kind == "i32" else int

    def run(wave: "Wave") -> None:
        wave.scc = int(compare(convert(left(wave)), convert(right(wave))))

    return run


def _save_exec(name: str, operands: tuple[str, ...]) -> Callable[["Wave"], None]:
    save, set_exec, get = put_scalar_pair(operands[0]), put_scalar_pair("exec"), scalar_pair(operands[1])
    combine = {
        "s_and_saveexec_b64": lambda mask, old: mask & old,
        "s_or_saveexec_b64": lambda mask, old: mask | old,
        "s_andn2_saveexec_b64": lambda mask, old: mask & ~old,
    }[name]

    def run(wave: "Wave") -> None:
        mask, old = get(wave), wave.exec
        save(wave, old)
        set_exec(wave, combine(mask, old))
        wave.scc = int(wave.exec != 0)

    return run


def _compute(name: str, operands: tuple[str, ...]) -> Callable[["Wave"], None]:
    conditional, wide = name in _CONDITIONAL, name.endswith("_b64")
    rule = (_CONDITIONAL if conditional else _RULES)[name]
    put = (put_scalar_pair if wide else put_scalar)(operands[0])
    sources = operands if name.endswith("k_i32") and name != "s_movk_i32" else operands[1:]
    gets = [(scalar_pair if wide else scalar)(operand) for operand in sources]
    if name == "s_lshl_b64":
        gets[1] = scalar(operands[2])

    def run(wave: "Wave") -> None:
        values = [get(wave) for get in gets]
        value, scc = rule(wave.scc, *values) if conditional else rule(*values)
        put(wave, value)
        if scc is not None:
            wave.scc = int(scc)

    return run


def _signed(x: int) -> int:
    return x - (1 << 32) if x & 0x80000000 else x


def _short(x: int) -> int:
    """Return a 16-bit constant with its sign."""
    return (x & 0xFFFF) - (1 << 16) if x & 0x8000 else x & 0xFFFF


def _nonzero(value: int) -> Result:
    return value, value != 0


def _carry(value: int) -> Result:
    return value, value > WORD


def _overflow(value: int) -> Result:
    return value, not -(1 << 31) <= value < 1 << 31


def _field(bits: int, place: int) -> Result:
    return _nonzero(bits >> (place & 31) & ((1 << (place >> 16 & 127)) - 1))


def _signed_field(bits: int, place: int) -> Result:
    width, value = place >> 16 & 127, _field(bits, place)[0]
    return _nonzero((value - (1 << width) if width and value >> width - 1 & 1 else value) & WORD)


_RULES: dict[str, Callable[..., Result]] = {
    "s_mov_b32": lambda a: (a, None),
    "s_mov_b64": lambda a: (a, None),
    "s_movk_i32": lambda a: (_short(a), None),
    "s_addk_i32": lambda a, b: _overflow(_signed(a) + _short(b)),
    "s_mulk_i32": lambda a, b: (a * _short(b), None),
    "s_add_u32": lambda a, b: _carry(a + b),
    "s_sub_u32": lambda a, b: (a - b, a < b),
    "s_add_i32": lambda a, b: _overflow(_signed(a) + _signed(b)),
    "s_sub_i32": lambda a, b: _overflow(_signed(a) - _signed(b)),
    "s_lshl1_add_u32": lambda a, b: _carry((a << 1) + b),
    "s_lshl2_add_u32": lambda a, b: _carry((a << 2) + b),
    "s_lshl3_add_u32": lambda a, b: _carry((a << 3) + b),
    "s_lshl4_add_u32": lambda a, b: _carry((a << 4) + b),
    "s_mul_i32": lambda a, b: (a * b, None),
    "s_mul_hi_u32": lambda a, b: (a * b >> 32, None),
    "s_mul_hi_i32": lambda a, b: (_signed(a) * _signed(b) >> 32, None),
    "s_abs_i32": lambda a: _nonzero(abs(_signed(a)) & WORD),
    "s_max_i32": lambda a, b: (max(_signed(a), _signed(b)), _signed(a) >= _signed(b)),
    "s_min_i32": lambda a, b: (min(_signed(a), _signed(b)), _signed(a) < _signed(b)),
    "s_max_u32": lambda a, b: (max(a, b), a >= b),
    "s_min_u32": lambda a, b: (min(a, b), a < b),
    "s_and_b32": lambda a, b: _nonzero(a & b),
    "s_or_b32": lambda a, b: _nonzero(a | b),
    "s_xor_b32": lambda a, b: _nonzero(a ^ b),
    "s_andn2_b32": lambda a, b: _nonzero(a & ~b & WORD),
    "s_and_b64": lambda a, b: _nonzero(a & b),
    "s_or_b64": lambda a, b: _nonzero(a | b),
    "s_xor_b64": lambda a, b: _nonzero(a ^ b),
    "s_andn2_b64": lambda a, b: _nonzero(a & ~b & DOUBLE_WORD),
    "s_not_b64": lambda a: _nonzero(~a & DOUBLE_WORD),
    "s_lshl_b32": lambda a, b: _nonzero(a << (b & 31) & WORD),
    "s_lshl_b64": lambda a, b: _nonzero(a << (b & 63) & DOUBLE_WORD),
    "s_lshr_b32": lambda a, b: _nonzero(a >> (b & 31)),
    "s_ashr_i32": lambda a, b: _nonzero(_signed(a) >> (b & 31) & WORD),
    "s_bfe_u32": lambda a, b: _field(a, b),
    "s_bfe_i32": lambda a, b: _signed_field(a, b),
}

_CONDITIONAL: dict[str, Callable[..., Result]] = {
    "s_addc_u32": lambda scc, a, b: _carry(a + b + scc),
    "s_subb_u32": lambda scc, a, b: (a - b - scc, a < b + scc),
    "s_cselect_b32": lambda scc, a, b: (a if scc else b, None),
    "s_cselect_b64": lambda scc, a, b: (a if scc else b, None),
}
"""Rules that also take scc."""
