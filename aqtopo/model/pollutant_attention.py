"""Attention between the pollutants of a token, in the head.

Shapes: B batch, K horizons, N tokens, D width, C pollutants, W = D / 2 width of a pollutant.
"""

from torch import Tensor, nn
from torch.nn import functional


class PollutantAttention(nn.Module):
    """A row of numbers for each pollutant, and one residual self-attention between the rows."""

    def __init__(self, dim: int, heads: int, pollutants: int) -> None:
        super().__init__()
        self.width, self.heads, self.pollutants = dim // 2, heads, pollutants
        self.rows = nn.Linear(dim, pollutants * self.width)
        self.norm = nn.LayerNorm(self.width)
        self.qkv = nn.Linear(self.width, 3 * self.width)
        self.proj = nn.Linear(self.width, self.width)

    def forward(self, x_BKND: Tensor) -> Tensor:
        """Return the rows of all pollutants side by side, (B, K, N, C W)."""
        rows = self.rows(x_BKND).unflatten(-1, (self.pollutants, self.width)).flatten(0, 2)
        q, k, v = self.qkv(self.norm(rows)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return (rows + self.proj(mixed)).view(*x_BKND.shape[:-1], -1)
