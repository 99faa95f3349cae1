"""How results lie in memory, whichever implementation writes them.

Shapes: B batch, H heads, N tokens, D head width.
"""

from torch import Tensor


def empty_like_tokens(x: Tensor) -> Tensor:
    """Uninitialised (B, H, N, D) over memory (B, N, H, D), so that merging the heads is free."""
    B, H, N, D = x.shape
    return x.new_empty((B, N, H, D)).transpose(1, 2)
