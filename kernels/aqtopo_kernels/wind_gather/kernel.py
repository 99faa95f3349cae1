"""Triton kernel of the wind gather and its inverse: copies whole rows in one pass over memory.

Shapes: B batch, N tokens, D width.
"""

# Triton compiles this function, and annotations mark compile-time values.
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def move_rows_kernel(
    source, add, target, order,
    source_b, source_n, add_b, add_n, target_b, target_n, tokens, width,
    INVERSE: tl.constexpr, ADD: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write source[order[r]] (+ add[r]) to row r of target; INVERSE: source[r] to row order[r]."""
    batch = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = rows < tokens
    valid = inside[:, None] & (columns < width)
    # 64-bit rows cost no time: the kernel is limited by memory bandwidth.
    places = tl.load(order + batch * tokens + rows, mask=inside, other=0).to(tl.int64)[:, None]
    rows = rows.to(tl.int64)[:, None]
    if INVERSE:
        values = tl.load(source + batch * source_b + rows * source_n + columns, mask=valid, other=0.0)
        tl.store(target + batch * target_b + places * target_n + columns, values, mask=valid)
    else:
        values = tl.load(source + batch * source_b + places * source_n + columns, mask=valid, other=0.0)
        values = values.to(target.dtype.element_ty)
        if ADD:
            added = tl.load(add + batch * add_b + rows * add_n + columns, mask=valid, other=0.0)
            values += added.to(target.dtype.element_ty)
        tl.store(target + batch * target_b + rows * target_n + columns, values, mask=valid)
