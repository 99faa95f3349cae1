"""Arithmetic of a vector lane in float32.

Transcendentals are rounded to nearest; the hardware's are within 1 ulp. Like the hardware's, they take and
return zero for denormals. Other operations keep denormals, which is the mode that Triton sets.
"""

import numpy as np
from numpy.typing import NDArray

from tests.amdgcn.assembly import EmulationError
from tests.amdgcn.operands import F32, U32, WORD, Floats, Lanes

TINY = F32(np.finfo(np.float32).tiny)


def flush(x: Floats) -> Floats:
    """Replace denormals by zeros of their sign."""
    return np.where(np.abs(x) < TINY, np.copysign(F32(0), x), x)


def fma(a: Floats, b: Floats, c: Floats) -> Floats:
    """Compute a b + c with one rounding, by rounding the sum to odd in float64."""
    product = np.multiply(a, b, dtype=np.float64)
    addend = np.asarray(c, np.float64)
    total = np.asarray(product + addend)
    back = total - product
    lost = (product - (total - back)) + (addend - back)
    bits = total.view(np.int64)
    inexact = (lost != 0) & np.isfinite(total) & (bits & 1 == 0)
    if inexact.any():
        away = (lost > 0) == (total > 0)
        total = np.where(inexact, (bits + np.where(away, 1, -1)).view(np.float64), total)
    return total.astype(F32)


def exp2(x: Floats) -> Floats:
    """Compute 2 to the power of x."""
    return flush(np.exp2(x.astype(np.float64)).astype(F32))


def log2(x: Floats) -> Floats:
    """Compute the base-2 logarithm."""
    return np.log2(flush(x).astype(np.float64)).astype(F32)


def reciprocal(x: Floats) -> Floats:
    """Compute 1 / x."""
    return flush((1.0 / flush(x).astype(np.float64)).astype(F32))


def to_unsigned(x: Floats) -> Lanes:
    """Truncate to uint32; NaN becomes 0."""
    return (
        np.clip(np.nan_to_num(np.trunc(x.astype(np.float64)), nan=0.0), 0, WORD).astype(np.uint64).astype(U32)
    )


def from_half(bits: Lanes) -> Floats:
    """Convert the float16 in the lower 16 bits of each lane."""
    return np.asarray(bits & U32(0xFFFF)).astype(np.uint16).view(np.float16).astype(F32)


def to_half(x: Floats) -> Lanes:
    """Round to float16, in the lower 16 bits of each lane."""
    return np.asarray(x).astype(np.float16).view(np.uint16).astype(U32)


def _exponent(x: Floats) -> NDArray[np.int64]:
    return (x.view(U32) >> U32(23) & U32(255)).astype(np.int64)


def check_division(active: NDArray[np.bool_], denominator: Floats, numerator: Floats) -> None:
    """Refuse divisions whose operands `v_div_scale_f32` would scale.

    Raises:
        EmulationError: an operand is zero, denormal or close to the limits of float32.
    """
    top, bottom = _exponent(numerator), _exponent(denominator)
    plain = (numerator != 0) & (denominator != 0) & (top - bottom < 96) & (bottom - top < 126)
    plain &= (bottom > 0) & (bottom < 252) & (top > 23)
    plain |= np.isnan(denominator) | np.isnan(numerator)
    if not (plain | ~active).all():
        raise EmulationError("a division with operands that need scaling is not supported")


def fix_division(quotient: Floats, denominator: Floats, numerator: Floats) -> Floats:
    """Return the quotient with the special cases of IEEE division."""
    negative = np.signbit(denominator) ^ np.signbit(numerator)
    infinity, zero = np.isinf(denominator), denominator == 0
    out = np.where(negative, -np.abs(quotient), np.abs(quotient))
    out = np.where(zero | np.isinf(numerator), np.where(negative, F32(-np.inf), F32(np.inf)), out)
    out = np.where(infinity | (numerator == 0), np.where(negative, F32(-0.0), F32(0)), out)
    undefined = np.isnan(denominator) | np.isnan(numerator)
    undefined |= (zero & (numerator == 0)) | (infinity & np.isinf(numerator))
    return np.where(undefined, F32(np.nan), out).astype(F32)
