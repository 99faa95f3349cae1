"""What vector instructions compute from the 32 bits of their sources."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from tests.amdgcn import numerics
from tests.amdgcn.assembly import EmulationError
from tests.amdgcn.operands import F32, U32, Lanes

I32 = np.int32
_LOW, _SHIFT = U32(0xFFFF), U32(31)


def _signed(x: Lanes) -> Any:
    return np.asarray(x).view(I32)


def _permute(upper: Lanes, lower: Lanes, selector: Lanes) -> Lanes:
    """Pick four bytes of eight; the selector is the same in all lanes."""
    if np.ndim(selector):
        raise EmulationError("a selector in a vector register is not supported")
    picks, kept = _bytes_of(int(selector))
    both = np.empty((64, 2), U32)
    both[:, 0], both[:, 1] = lower, upper
    return np.ascontiguousarray(both.view(np.uint8)[:, picks]).view(U32)[:, 0] & kept


@lru_cache
def _bytes_of(selector: int) -> tuple[list[int], np.uint32]:
    each = [selector >> 8 * i & 255 for i in range(4)]
    if any(byte > 7 and byte != 12 for byte in each):
        raise EmulationError(f"the selector {selector:#x} is not supported")
    return [byte & 7 for byte in each], U32(sum(255 << 8 * i for i, byte in enumerate(each) if byte < 8))


def _signed_field(bits: Lanes, start: Lanes, width: Lanes) -> Lanes:
    left = U32(32) - (width & _SHIFT)
    return (_signed(bits << (left - (start & _SHIFT))) >> _signed(left)).view(U32)


def _multiply_24(a: Lanes, b: Lanes) -> Lanes:
    signed = [_signed(x << U32(8)) >> 8 for x in (a, b)]
    return (signed[0] * signed[1]).view(U32)


def _reverse(a: Lanes) -> Lanes:
    if np.ndim(a):
        raise EmulationError("v_bfrev_b32 of a vector register is not supported")
    return U32(int(f"{int(a):032b}"[::-1], 2))  # type: ignore[return-value]


INTEGER_RULES: dict[str, Callable[..., Lanes]] = {
    "v_mov_b32": lambda a: a,
    "v_accvgpr_read_b32": lambda a: a,
    "v_accvgpr_write_b32": lambda a: a,
    "v_accvgpr_mov_b32": lambda a: a,
    "v_not_b32": lambda a: ~a,
    "v_bfrev_b32": _reverse,
    "v_add_u32": lambda a, b: a + b,
    "v_sub_u32": lambda a, b: a - b,
    "v_subrev_u32": lambda a, b: b - a,
    "v_and_b32": lambda a, b: a & b,
    "v_or_b32": lambda a, b: a | b,
    "v_xor_b32": lambda a, b: a ^ b,
    "v_lshlrev_b32": lambda a, b: b << (a & _SHIFT),
    "v_lshrrev_b32": lambda a, b: b >> (a & _SHIFT),
    "v_ashrrev_i32": lambda a, b: (_signed(b) >> _signed(a & _SHIFT)).view(U32),
    "v_mul_lo_u32": lambda a, b: a * b,
    "v_mul_u32_u24": lambda a, b: (a & U32(0xFFFFFF)) * (b & U32(0xFFFFFF)),
    "v_mul_i32_i24": _multiply_24,
    "v_mul_hi_u32": lambda a, b: (a.astype(np.uint64) * b.astype(np.uint64) >> np.uint64(32)).astype(U32),
    "v_add3_u32": lambda a, b, c: a + b + c,
    "v_or3_b32": lambda a, b, c: a | b | c,
    "v_and_or_b32": lambda a, b, c: a & b | c,
    "v_lshl_or_b32": lambda a, b, c: a << (b & _SHIFT) | c,
    "v_lshl_add_u32": lambda a, b, c: (a << (b & _SHIFT)) + c,
    "v_add_lshl_u32": lambda a, b, c: (a + b) << (c & _SHIFT),
    "v_xad_u32": lambda a, b, c: (a ^ b) + c,
    "v_bfi_b32": lambda a, b, c: a & b | ~a & c,
    "v_bfe_u32": lambda a, b, c: a >> (b & _SHIFT) & ((U32(1) << (c & _SHIFT)) - U32(1)),
    "v_bfe_i32": _signed_field,
    "v_perm_b32": _permute,
    "v_cvt_u32_f32": lambda a: numerics.to_unsigned(a.view(F32)),
    "v_ldexp_f32": lambda a, b: np.ldexp(a.view(F32), _signed(b)).astype(F32).view(U32),
    "v_cvt_f32_u32": lambda a: a.astype(F32).view(U32),
    "v_cvt_f16_f32": lambda a: numerics.to_half(a.view(F32)),
    "v_cvt_f32_f16": lambda a: numerics.from_half(a).view(U32),
    "v_pack_b32_f16": lambda a, b: a & _LOW | b << U32(16),
}
"""Rules on uint32. Sources are arrays of 64 lanes or NumPy scalars."""

FLOAT_RULES: dict[str, Callable[..., Any]] = {
    "v_add_f32": np.add,
    "v_sub_f32": np.subtract,
    "v_subrev_f32": lambda a, b: b - a,
    "v_mul_f32": np.multiply,
    "v_max_f32": np.fmax,
    "v_min_f32": np.fmin,
    "v_max3_f32": lambda a, b, c: np.fmax(np.fmax(a, b), c),
    "v_min3_f32": lambda a, b, c: np.fmin(np.fmin(a, b), c),
    "v_med3_f32": lambda a, b, c: np.fmax(np.fmin(a, b), np.fmin(np.fmax(a, b), c)),
    "v_fma_f32": numerics.fma,
    "v_exp_f32": numerics.exp2,
    "v_log_f32": numerics.log2,
    "v_rcp_f32": numerics.reciprocal,
    "v_rcp_iflag_f32": numerics.reciprocal,
    "v_div_fixup_f32": numerics.fix_division,
}
"""Rules on float32."""

COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "o": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    "u": lambda a, b: np.isnan(a) | np.isnan(b),
}
