"""A kernel of nothing but the conversions to bfloat16 by bits."""

# mypy: ignore-errors

import triton
import triton.language as tl

from aqtopo_kernels.elevation_attention.kernel import _rounded, _weights


@triton.jit
def bits_kernel(x, rounded, cut, summed, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    values = tl.load(x + at)
    low, kept = _weights(values, tl.bfloat16, True)
    tl.store(rounded + at, _rounded(values, tl.bfloat16, True))
    tl.store(cut + at, low)
    tl.store(summed + at, kept)
