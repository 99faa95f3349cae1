"""The Triton kernels of elevation attention: forward, gradients of queries and alpha, of keys and values.

score_ij = scale q_i k_j - alpha max(0, z_j - z_i) / 1000. No N x N matrix is stored, and no sum is atomic.
Assumptions of all kernels:

* Heights are in units of 2^20 m, and each row is padded by more than a block, so loads need no mask. The
  scaling is exact, and a height difference clamped to [0, 1] is the rise; on AMD the clamp is a free modifier
  of the subtraction. `slope` is -alpha 2^20 / (1000 scale) for each head, so score_ij =
  scale (q_i k_j + slope rise_ij) costs one subtraction and one multiply-add more than plain attention.
* `scale` includes log2(e): exponentials are powers of two, and `lse` is the base-2 logarithm of the sum.
* Only query and output rows follow `order`, because keys are summed over. The forward kernel gathers its
  query rows once per program. In the backward pass `delta_kernel` copies dout into storage order. No inner
  loop gathers.
* A head of D = 96 is split into 64 + 32 columns (PARTS: first column and width) and is not padded to 128.
* K and V have the same strides, so one set of addresses serves both.
* EVEN: N is a multiple of both block sizes, and nothing is masked.

Shapes: B batch, H heads, N tokens, D head width, BLOCK_M queries and BLOCK_N keys of a block of scores.
"""

# Triton compiles these functions: annotations mark compile-time values, tuples are extended with +, and an
# `if` on a compile-time value must be a statement.
# mypy: ignore-errors
# ruff: noqa: RUF005, SIM108

import triton
import triton.language as tl


@triton.jit
def _load(pointer, rows, stride, inside, PARTS: tl.constexpr, EVEN: tl.constexpr):
    """Load rows of a (N, D) matrix as one block per part; rows that are not inside are 0."""
    parts = ()
    for i in tl.static_range(len(PARTS)):
        at = pointer + rows[:, None] * stride + (PARTS[i][0] + tl.arange(0, PARTS[i][1]))[None, :]
        if EVEN:
            parts = parts + (tl.load(at),)
        else:
            parts = parts + (tl.load(at, mask=inside[:, None], other=0.0),)
    return parts


@triton.jit
def _store(pointer, rows, stride, inside, parts, PARTS: tl.constexpr, EVEN: tl.constexpr):
    """Store the parts of rows, rounded to the pointer's dtype; the inverse of `_load`."""
    for i in tl.static_range(len(PARTS)):
        at = pointer + rows[:, None] * stride + (PARTS[i][0] + tl.arange(0, PARTS[i][1]))[None, :]
        if EVEN:
            tl.store(at, parts[i].to(pointer.dtype.element_ty))
        else:
            tl.store(at, parts[i].to(pointer.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _load_row(pointer, columns, inside, outside, EVEN: tl.constexpr):
    """Load a vector; elements that are not inside are `outside`."""
    if EVEN:
        values = tl.load(pointer + columns)
    else:
        values = tl.load(pointer + columns, mask=inside, other=outside)
    return values


@triton.jit
def _zeros(ROWS: tl.constexpr, PARTS: tl.constexpr):
    parts = ()
    for i in tl.static_range(len(PARTS)):
        parts = parts + (tl.full((ROWS, PARTS[i][1]), 0.0, tl.float32),)
    return parts


@triton.jit
def _scaled(parts, factor):
    """Multiply each row of each part by its factor."""
    scaled = ()
    for i in tl.static_range(len(parts)):
        scaled = scaled + (parts[i] * factor[:, None],)
    return scaled


@triton.jit
def _inner(lefts, rights, start):
    """Add the sum of left right^T over the parts to start; IEEE precision for float32."""
    product = start
    for i in tl.static_range(len(lefts)):
        product = tl.dot(lefts[i], tl.trans(rights[i]), product, input_precision="ieee")
    return product


@triton.jit
def _accumulate(sums, weights, parts):
    """Add weights x part to the sums, part by part."""
    total = ()
    for i in tl.static_range(len(parts)):
        total = total + (tl.dot(weights, parts[i], sums[i], input_precision="ieee"),)
    return total


@triton.jit
def _rise(upper, lower):
    """Compute max(0, upper - lower) in units of 2^20 m, in which it is at most 1."""
    return tl.clamp(upper - lower, 0.0, 1.0)


@triton.jit
def _high_half(bits):
    """Return the upper half of 32 bits as a bfloat16."""
    return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def _rounded(x, dtype: tl.constexpr, BY_BITS: tl.constexpr):
    """Round x to dtype.

    CDNA2 and CDNA3 have no conversion instruction to bfloat16: Triton's conversion takes five instructions,
    integer arithmetic on the bits (BY_BITS) one and a half. BY_BITS rounds ties away from zero. It would lose
    a NaN whose payload is only in the low bits, but no instruction produces such a NaN.
    """
    if BY_BITS:
        low = _high_half(x.to(tl.uint32, bitcast=True) + 0x8000)
    else:
        low = x.to(dtype)
    return low


@triton.jit
def _weights(x, dtype: tl.constexpr, BY_BITS: tl.constexpr):
    """Return the softmax weights x >= 0 for the product with V, and for their sum.

    BY_BITS truncates both instead of rounding: the mean error cancels in the quotient, and the remaining
    error has the variance of rounding. It saves one more instruction per element.
    """
    if BY_BITS:
        bits = x.to(tl.uint32, bitcast=True)
        low = _high_half(bits)
        summed = (bits & 0xFFFF0000).to(tl.float32, bitcast=True)
    else:
        low = x.to(dtype)
        summed = x
    return low, summed


@triton.jit
def _spread(columns, GROUPS: tl.constexpr):
    """Return the key at each column of the second product; see `_regroup`."""
    if GROUPS == 1:
        keys = columns
    else:
        keys = columns // (4 * GROUPS) * (4 * GROUPS) + columns % GROUPS * 4 + columns // GROUPS % 4
    return keys


@triton.jit
def _regroup(weights, GROUPS: tl.constexpr):
    """Return the weights with columns in the order of `_spread`. It is free: no element leaves its lane.

    The matrix unit returns four neighbouring columns per lane and, in float32, takes columns GROUPS apart.
    Keys are summed over, so V's rows are loaded in that order. Moving the weights between lanes would take 24
    cndmask and 8 permutes for 32 x 32 weights.
    """
    if GROUPS == 1:
        grouped = weights
    else:
        M: tl.constexpr = weights.shape[0]
        N_: tl.constexpr = weights.shape[1]
        fours = tl.permute(tl.reshape(weights, (M, N_ // (4 * GROUPS), GROUPS, 4)), (0, 1, 3, 2))
        grouped = tl.reshape(fours, (M, N_))
    return grouped


@triton.jit
def _head_start(pointer, batch, head, stride_b, stride_h):
    """Return the address of a head in 64 bits: B x H x N x D may exceed 2^31."""
    return pointer + batch.to(tl.int64) * stride_b + head.to(tl.int64) * stride_h


@triton.jit(do_not_specialize=["heads"])
def forward_kernel(
    q, k, v, out, lse, height, slope, order,
    height_b, q_b, q_h, q_n, kv_b, kv_h, kv_n, out_b, out_h, out_n,
    heads, tokens, scale,
    PARTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BIAS: tl.constexpr, ORDERED: tl.constexpr, EVEN: tl.constexpr, BY_BITS: tl.constexpr,
    GROUPS: tl.constexpr,
):  # fmt: skip
    """Compute attention: row r of out belongs to token order[r]; lse (B, H, N) is in storage order."""
    head = tl.program_id(1) % heads
    batch = tl.program_id(1) // heads
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_inside = rows < tokens
    places = rows
    if ORDERED:
        places = _load_row(order + batch.to(tl.int64) * tokens, rows, row_inside, 0, EVEN)
    q_parts = _load(_head_start(q, batch, head, q_b, q_h), places, q_n, row_inside, PARTS, EVEN)
    k += batch.to(tl.int64) * kv_b + head.to(tl.int64) * kv_h
    v += batch.to(tl.int64) * kv_b + head.to(tl.int64) * kv_h
    columns = tl.arange(0, BLOCK_N)
    if BIAS:
        height += batch.to(tl.int64) * height_b
        row_height = tl.load(height + places)
        head_slope = tl.load(slope + head)
        key_height = tl.load(height + columns)
    sums = _zeros(BLOCK_M, PARTS)
    largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.full((BLOCK_M,), 0.0, tl.float32)
    for first in range(0, tokens, BLOCK_N):
        keys = first + columns
        k_parts = _load(k, keys, kv_n, keys < tokens, PARTS, EVEN)
        score = _inner(q_parts, k_parts, tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32))
        if BIAS:
            score += _rise(key_height[None, :], row_height[:, None]) * head_slope
            # Load the next block's heights after the last use of this block's, to reuse their registers.
            key_height = tl.load(height + keys + BLOCK_N)
        if not EVEN:
            score = tl.where(keys[None, :] < tokens, score, float("-inf"))
        value_rows = first + _spread(columns, GROUPS)
        v_parts = _load(v, value_rows, kv_n, value_rows < tokens, PARTS, EVEN)
        new_largest = tl.maximum(largest, tl.max(score, 1))
        weight = tl.exp2(score * scale - (new_largest * scale)[:, None])
        shrink = tl.exp2((largest - new_largest) * scale)
        largest = new_largest
        low, summed = _weights(weight, q.dtype.element_ty, BY_BITS)
        total = total * shrink + tl.sum(summed, 1)
        sums = _accumulate(_scaled(sums, shrink), _regroup(low, GROUPS), v_parts)
    _store(
        _head_start(out, batch, head, out_b, out_h),
        rows, out_n, row_inside, _scaled(sums, 1.0 / total), PARTS, EVEN,
    )  # fmt: skip
    lse_row = lse + tl.program_id(1).to(tl.int64) * tokens + places
    tl.store(lse_row, largest * scale + tl.log2(total), mask=row_inside)


@triton.jit(do_not_specialize=["heads"])
def delta_kernel(
    dout, out, delta, stored, order,
    dout_b, dout_h, dout_n, out_b, out_h, out_n, stored_b, stored_h, stored_n,
    heads, tokens,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, ORDERED: tl.constexpr,
):  # fmt: skip
    """Compute delta, the sums of dout x out over D, and copy dout; both in storage order."""
    head = tl.program_id(1) % heads
    batch = tl.program_id(1) // heads
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < tokens
    columns = tl.arange(0, WIDTH)[None, :]
    valid = inside[:, None] & (columns < D)
    places = rows
    if ORDERED:
        places = tl.load(order + batch.to(tl.int64) * tokens + rows, mask=inside, other=0)
    dout_at = _head_start(dout, batch, head, dout_b, dout_h) + rows[:, None] * dout_n + columns
    out_at = _head_start(out, batch, head, out_b, out_h) + rows[:, None] * out_n + columns
    dout_block = tl.load(dout_at, mask=valid, other=0.0)
    out_block = tl.load(out_at, mask=valid, other=0.0)
    row_delta = tl.sum(dout_block.to(tl.float32) * out_block.to(tl.float32), 1)
    tl.store(delta + tl.program_id(1).to(tl.int64) * tokens + places, row_delta, mask=inside)
    if ORDERED:
        stored_at = (
            _head_start(stored, batch, head, stored_b, stored_h) + places[:, None] * stored_n + columns
        )
        tl.store(stored_at, dout_block, mask=valid)


@triton.jit(do_not_specialize=["heads"])
def query_gradient_kernel(
    q, k, v, dout, lse, delta, height, slope, dq, drise,
    height_b, q_b, q_h, q_n, kv_b, kv_h, kv_n, dout_b, dout_h, dout_n, dq_b, dq_h, dq_n,
    heads, tokens, scale, gradient_scale,
    PARTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BIAS: tl.constexpr, EVEN: tl.constexpr, BY_BITS: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of the queries, and per program the sum of dscore x rise for dalpha.

    The sums are drise (B H, blocks).
    """
    head = tl.program_id(1) % heads
    batch = tl.program_id(1) // heads
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_inside = rows < tokens
    q_parts = _load(_head_start(q, batch, head, q_b, q_h), rows, q_n, row_inside, PARTS, EVEN)
    dout_head = _head_start(dout, batch, head, dout_b, dout_h)
    dout_parts = _load(dout_head, rows, dout_n, row_inside, PARTS, EVEN)
    k += batch.to(tl.int64) * kv_b + head.to(tl.int64) * kv_h
    v += batch.to(tl.int64) * kv_b + head.to(tl.int64) * kv_h
    vector = tl.program_id(1).to(tl.int64) * tokens
    # Rows beyond the last token get an infinite lse, so their weights are 0.
    row_lse = _load_row(lse + vector, rows, row_inside, float("inf"), EVEN)
    row_delta = _load_row(delta + vector, rows, row_inside, 0.0, EVEN)
    columns = tl.arange(0, BLOCK_N)
    if BIAS:
        height += batch.to(tl.int64) * height_b
        row_height = tl.load(height + rows)
        head_slope = tl.load(slope + head)
        rise_sums = tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32)
    sums = _zeros(BLOCK_M, PARTS)
    for first in range(0, tokens, BLOCK_N):
        keys = first + columns
        k_parts = _load(k, keys, kv_n, keys < tokens, PARTS, EVEN)
        v_parts = _load(v, keys, kv_n, keys < tokens, PARTS, EVEN)
        score = _inner(q_parts, k_parts, tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32))
        if BIAS:
            key_height = tl.load(height + keys)
            rise = _rise(key_height[None, :], row_height[:, None])
            score += rise * head_slope
        if not EVEN:
            score = tl.where(keys[None, :] < tokens, score, float("-inf"))
        weight = tl.exp2(score * scale - row_lse[:, None])
        # The matrix product starts from -delta, which keeps this subtraction off the critical path.
        start = tl.broadcast_to(-row_delta[:, None], (BLOCK_M, BLOCK_N))
        dscore = weight * _inner(dout_parts, v_parts, start)
        if BIAS:
            rise_sums += dscore * rise
        sums = _accumulate(sums, _rounded(dscore, q.dtype.element_ty, BY_BITS), k_parts)
    dq_head = _head_start(dq, batch, head, dq_b, dq_h)
    factor = tl.full((BLOCK_M,), 1.0, tl.float32) * gradient_scale
    _store(dq_head, rows, dq_n, row_inside, _scaled(sums, factor), PARTS, EVEN)
    if BIAS:
        tl.store(
            drise + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0), tl.sum(tl.sum(rise_sums, 1), 0)
        )


@triton.jit(do_not_specialize=["heads"])
def key_value_gradient_kernel(
    q, k, v, dout, lse, delta, height, slope, dk, dv,
    height_b, q_b, q_h, q_n, kv_b, kv_h, kv_n, dout_b, dout_h, dout_n,
    dk_b, dk_h, dk_n, dv_b, dv_h, dv_n,
    heads, tokens, scale, gradient_scale,
    PARTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BIAS: tl.constexpr, EVEN: tl.constexpr, BY_BITS: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of BLOCK_N keys and values from transposed scores, in a loop over queries."""
    head = tl.program_id(1) % heads
    batch = tl.program_id(1) // heads
    keys = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    key_inside = keys < tokens
    k_parts = _load(_head_start(k, batch, head, kv_b, kv_h), keys, kv_n, key_inside, PARTS, EVEN)
    v_parts = _load(_head_start(v, batch, head, kv_b, kv_h), keys, kv_n, key_inside, PARTS, EVEN)
    q += batch.to(tl.int64) * q_b + head.to(tl.int64) * q_h
    dout += batch.to(tl.int64) * dout_b + head.to(tl.int64) * dout_h
    lse += tl.program_id(1).to(tl.int64) * tokens
    delta += tl.program_id(1).to(tl.int64) * tokens
    if BIAS:
        height += batch.to(tl.int64) * height_b
        key_height = tl.load(height + keys)
        head_slope = tl.load(slope + head)
    dtype: tl.constexpr = q.dtype.element_ty
    dk_sums = _zeros(BLOCK_N, PARTS)
    dv_sums = _zeros(BLOCK_N, PARTS)
    for first in range(0, tokens, BLOCK_M):
        rows = first + tl.arange(0, BLOCK_M)
        inside = rows < tokens
        q_parts = _load(q, rows, q_n, inside, PARTS, EVEN)
        dout_parts = _load(dout, rows, dout_n, inside, PARTS, EVEN)
        score = _inner(k_parts, q_parts, tl.full((BLOCK_N, BLOCK_M), 0.0, tl.float32))
        if BIAS:
            row_height = tl.load(height + rows)
            score += _rise(key_height[:, None], row_height[None, :]) * head_slope
        # Rows beyond the last token get an infinite lse, so their weights are 0.
        row_lse = _load_row(lse, rows, inside, float("inf"), EVEN)
        weight = tl.exp2(score * scale - row_lse[None, :])
        row_delta = _load_row(delta, rows, inside, 0.0, EVEN)
        start = tl.full((BLOCK_N, BLOCK_M), 0.0, tl.float32)
        dscore = weight * (_inner(v_parts, dout_parts, start) - row_delta[None, :])
        dv_sums = _accumulate(dv_sums, _rounded(weight, dtype, BY_BITS), dout_parts)
        dk_sums = _accumulate(dk_sums, _rounded(dscore, dtype, BY_BITS), q_parts)
    dv_head = _head_start(dv, batch, head, dv_b, dv_h)
    dk_head = _head_start(dk, batch, head, dk_b, dk_h)
    factor = tl.full((BLOCK_N,), 1.0, tl.float32) * gradient_scale
    _store(dv_head, keys, dv_n, key_inside, dv_sums, PARTS, EVEN)
    _store(dk_head, keys, dk_n, key_inside, _scaled(dk_sums, factor), PARTS, EVEN)
