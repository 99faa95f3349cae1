"""Memory layout of results, common to all implementations.

Shapes: B batch, H heads, N tokens, D head width.
"""

from torch import Tensor


def empty_like_tokens(x: Tensor) -> Tensor:
    """Allocate (B, H, N, D) with memory layout (B, N, H, D), so that merging the heads is free."""
    B, H, N, D = x.shape
    return x.new_empty((B, N, H, D)).transpose(1, 2)
