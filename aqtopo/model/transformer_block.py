"""Pre-norm transformer block, and its construction from the configuration.

The block is that of timm, which ClimaX uses: attention, then an MLP, each with a residual connection.

Shapes: B batch, N tokens, D width.
"""

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from aqtopo.config import ModelConfig
from aqtopo.model.attention import ElevationAttention, SelfAttention
from aqtopo.model.dropout import SampleDropout, SampleDropPath, Seeds
from aqtopo.model.geometry import RASTER_ORDER, PatchCentres, TokenGeometry
from aqtopo.model.locality import EXTRA_COLUMNS, LocalityBias
from aqtopo_kernels import wind_gather


class Mlp(nn.Module):
    """Linear, exact GELU, Linear, with dropout after each Linear."""

    def __init__(self, dim: int, hidden: int, *, dropout: float, layer: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.drop1 = SampleDropout(dropout, f"{layer}.fc1")
        self.fc2 = nn.Linear(hidden, dim)
        self.drop2 = SampleDropout(dropout, f"{layer}.fc2")

    def forward(self, x_BND: Tensor, seeds: Seeds) -> Tensor:
        """Apply the MLP to each token."""
        hidden = self.drop1(self.act(self.fc1(x_BND)), seeds)
        y_BND: Tensor = self.drop2(self.fc2(hidden), seeds)
        return y_BND


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); the attention may reorder the tokens."""

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
        self,
        x_BND: Tensor,
        seeds: Seeds = None,
        order_BN: Tensor | None = None,
        geometry: TokenGeometry = RASTER_ORDER,
    ) -> Tensor:
        """Apply the block; with an order, row r of the result belongs to token order[r] of the input.

        Args:
            x_BND: tokens in storage order.
            seeds: one seed per sample for the dropout masks; needed only in training.
            order_BN: order of the tokens in the result; None keeps the input's order.
            geometry: map position of the input tokens.
        """
        y_BND = self.drop_path1(self.attn(self.norm1(x_BND), seeds, order_BN, geometry), seeds)
        x_BND = x_BND + y_BND if order_BN is None else wind_gather(x_BND, order_BN, add=y_BND)
        z_BND: Tensor = x_BND + self.drop_path2(self.mlp(self.norm2(x_BND), seeds), seeds)
        return z_BND


def make_block(
    config: ModelConfig, index: int, height_m: npt.NDArray[np.float32], centres: PatchCentres | None
) -> TransformerBlock:
    """Build block `index`, from 0. The drop-path rate grows linearly with depth.

    Blocks in `model.bias_blocks` have the attention biases. `height_m` (N,) is the elevation of each patch
    [m] in raster order; `centres` is None without a local bias.
    """
    layer = f"blocks.{index}"
    biased = index in config.bias_blocks
    locality = None
    if biased and centres is not None:
        heads, upwind = config.local_heads or config.heads, config.local_bias == "origin"
        locality = LocalityBias(heads, config.heads - heads, centres, upwind=upwind)
    attention: SelfAttention | ElevationAttention
    if biased and config.elevation_bias:
        attention = ElevationAttention(
            config.dim,
            config.heads,
            height_m if config.elevation_bias == "published" else -height_m,
            alpha=config.alpha,
            per_head=config.alpha_per_head,
            locality=locality,
            dropout=config.dropout,
            layer=f"{layer}.attn",
        )
    else:
        attention = SelfAttention(
            config.dim,
            config.heads,
            locality=locality,
            setting=config.attention,
            dropout=config.dropout,
            layer=f"{layer}.attn",
        )
    drop_path = config.drop_path * index / max(config.depth - 1, 1)
    return TransformerBlock(
        config.dim, config.hidden_dim, attention, dropout=config.dropout, drop_path=drop_path, layer=layer
    )


def kernel_head_widths(config: ModelConfig) -> tuple[int, ...]:
    """Return the head widths that aqtopo_kernels must support; the local bias widens some heads.

    Heads computed by PyTorch's attention are not included: it supports any width. With `attention: "auto"`
    the kernels are used only for widths that they support.
    """
    by_kernels = config.elevation_bias or config.attention == "fused"
    wider = (config.head_dim + EXTRA_COLUMNS,) if config.local_bias and by_kernels else ()
    return config.head_dim, *wider
