"""Which block gets which attention, as the configuration says."""

import numpy as np
import numpy.typing as npt

from aqtopo.config import ModelConfig
from aqtopo.model.attention import ElevationAttention, SelfAttention
from aqtopo.model.block import Block
from aqtopo.model.locality import MORE_COLUMNS, Locality, Places


def locality(config: ModelConfig, places: Places | None) -> Locality | None:
    """A new preference for what is near, if the configuration asks for it."""
    if places is None:
        return None
    heads = config.local_heads or config.heads
    return Locality(heads, config.heads - heads, places, carried=config.local_bias == "origin")


def kernel_head_widths(config: ModelConfig) -> tuple[int, ...]:
    """Columns of the heads for which a run may ask aqtopo_kernels: with the local bias some are wider.

    Those of PyTorch's attention are not among them, and with `attention: "auto"` the kernels are only asked
    for what they take.
    """
    by_kernels = config.elevation_bias or config.attention == "fused"
    wider = (config.head_dim + MORE_COLUMNS,) if config.local_bias and by_kernels else ()
    return config.head_dim, *wider


def make_block(
    config: ModelConfig,
    index: int,
    height_m: npt.NDArray[np.float32],
    places: Places | None,
) -> Block:
    """Block `index`: some carry the attention biases, and drop path grows linearly with depth."""
    layer = f"blocks.{index}"
    attention: SelfAttention | ElevationAttention
    biased = index in config.bias_blocks
    if biased and config.elevation_bias:
        attention = ElevationAttention(
            config.dim,
            config.heads,
            height_m if config.elevation_bias == "published" else -height_m,
            alpha=config.alpha,
            per_head=config.alpha_per_head,
            locality=locality(config, places),
            dropout=config.dropout,
            layer=f"{layer}.attn",
        )
    else:
        attention = SelfAttention(
            config.dim,
            config.heads,
            locality=locality(config, places) if biased else None,
            setting=config.attention,
            dropout=config.dropout,
            layer=f"{layer}.attn",
        )
    drop_path = config.drop_path * index / max(config.depth - 1, 1)
    return Block(
        config.dim, config.hidden_dim, attention, dropout=config.dropout, drop_path=drop_path, layer=layer
    )
