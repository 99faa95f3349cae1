"""Launch of the Triton kernel of the wind gather; `wind_gather` and `wind_scatter` check the arguments.

Shapes: B batch, N tokens, D width.
"""

import torch
from torch import Tensor

from aqtopo_kernels.wind_gather.kernel import move_rows_kernel

_ROWS = 8
_COLUMNS = 256
"""8 x 256 elements per program: three programs per row of D = 768, 16 bytes per lane in bfloat16."""


def gather(x: Tensor, order: Tensor, add: Tensor | None) -> Tensor:
    """Return x[order[r]] (+ add[r]) in row r; the dtype of x, promoted by that of `add`."""
    dtype = x.dtype if add is None else torch.promote_types(x.dtype, add.dtype)
    return _move(x, order, add, x.new_empty(x.shape, dtype=dtype), inverse=False)


def scatter(y: Tensor, order: Tensor) -> Tensor:
    """Return y[r] in row order[r]."""
    return _move(y, order, None, y.new_empty(y.shape), inverse=True)


def _move(source: Tensor, order: Tensor, add: Tensor | None, target: Tensor, *, inverse: bool) -> Tensor:
    source = source if source.stride(2) == 1 else source.contiguous()
    B, N, D = source.shape
    added = source if add is None else add.expand(B, N, D)
    added = added if added.stride(2) == 1 else added.contiguous()
    move_rows_kernel[(-(-N // _ROWS), -(-D // _COLUMNS), B)](
        source, added, target, order.to(torch.int32).contiguous(),
        *source.stride()[:2], *added.stride()[:2], *target.stride()[:2], N, D,
        INVERSE=inverse, ADD=add is not None, ROWS=_ROWS, COLUMNS=_COLUMNS, num_warps=4,
    )  # fmt: skip
    return target
