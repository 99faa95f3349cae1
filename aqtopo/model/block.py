"""One pre-norm transformer block (timm's, which ClimaX uses): attention, then an MLP, each on a residual.

Shapes: B batch, N tokens, D width.
"""

from torch import Tensor, nn

from aqtopo.model.attention import ElevationAttention, SelfAttention
from aqtopo.model.dropout import SampleDropout, SampleDropPath, Seeds
from aqtopo.model.way import RASTER, Way
from aqtopo_kernels import wind_gather


class Mlp(nn.Module):
    """Linear, exact GELU, Linear, with dropout behind both."""

    def __init__(self, dim: int, hidden: int, *, dropout: float, layer: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.drop1 = SampleDropout(dropout, f"{layer}.fc1")
        self.fc2 = nn.Linear(hidden, dim)
        self.drop2 = SampleDropout(dropout, f"{layer}.fc2")

    def forward(self, x_BND: Tensor, seeds: Seeds) -> Tensor:
        """The same transformation of every token."""
        hidden = self.drop1(self.act(self.fc1(x_BND)), seeds)
        y_BND: Tensor = self.drop2(self.fc2(hidden), seeds)
        return y_BND


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); the attention may change the order of the tokens."""

    def __init__(
        self,
        dim: int,
        hidden: int,
        attention: SelfAttention | ElevationAttention,
        *,
        dropout: float,
        drop_path: float,
        layer: str,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attention
        self.drop_path1 = SampleDropPath(drop_path, f"{layer}.attn.path")
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden, dropout=dropout, layer=f"{layer}.mlp")
        self.drop_path2 = SampleDropPath(drop_path, f"{layer}.mlp.path")

    def forward(
        self, x_BND: Tensor, seeds: Seeds = None, order_BN: Tensor | None = None, way: Way = RASTER
    ) -> Tensor:
        """Tokens in, tokens out; with an order, row r of the result belongs to token order[r] of the input.

        Args:
            x_BND: tokens in storage order.
            seeds: a seed a sample for the dropout masks; needed in training only.
            order_BN: the order to leave the tokens in; None keeps theirs.
            way: where the tokens are on the map.
        """
        y_BND = self.drop_path1(self.attn(self.norm1(x_BND), seeds, order_BN, way), seeds)
        x_BND = x_BND + y_BND if order_BN is None else wind_gather(x_BND, order_BN, add=y_BND)
        z_BND: Tensor = x_BND + self.drop_path2(self.mlp(self.norm2(x_BND), seeds), seeds)
        return z_BND
