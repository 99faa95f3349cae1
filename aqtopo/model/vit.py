"""The air-quality transformer, assembled.

The way of a token: embedded in raster order; + the position embedding of its scan position (+ lead time, in
encoder mode); block 0 with the elevation bias reads it there and writes it in wind order, where it stays
for all further blocks; norm; (+ lead time, in decoder mode) head; back to raster order; pixels.

Position embeddings belong to scan positions, everything else travels with its patch: that is how the order
acts, for attention itself does not see it.

Shapes: B batch, V input variables, C targets, K horizons, Y, X the grid's cells, N tokens, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aqtopo.config import ModelConfig, RunConfig
from aqtopo.model.attention import ElevationAttention, SelfAttention
from aqtopo.model.blocks import make_block
from aqtopo.model.dropout import SampleDropout, Seeds
from aqtopo.model.embedding import TokenEmbedding, VariableAggregation, collapsed_embedding, patch_pixels
from aqtopo.model.initialisation import initialise_modules, sincos_1d, sincos_2d
from aqtopo.model.locality import Places
from aqtopo.model.terrain import Terrain
from aqtopo.model.way import RASTER, Way, patch_winds
from aqtopo.model.wind import WindOrder
from aqtopo_kernels import wind_scatter

HOURS_PER_LEAD_UNIT = 100.0
"""ClimaX feeds lead times in units of 100 hours."""


class AirQualityViT(nn.Module):
    """Forecasts C pollutants at K horizons from V fields at one time.

    State-dict names and shapes are ClimaX's. Tables (orders, heights) are buffers outside of the state
    dict, since they follow from the configuration and the terrain.

    Args:
        config: the `model` part of a run's configuration.
        terrain: heights [m] and coordinates of the grid.
        variables: V.
        targets: C.
        present: for a tendency, where each target is among the input variables.
        seed: of the first weights.

    Raises:
        ValueError: the grid cannot be cut into the configured patches and regions.
    """

    def __init__(
        self,
        config: ModelConfig,
        terrain: Terrain,
        *,
        variables: int,
        targets: int,
        present: Sequence[int] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        assert len(present) == (targets if config.prediction == "tendency" else 0), present
        self.config, self.variables, self.targets = config, variables, targets
        self.present = list(present)
        self.grid = terrain.elevation_m.shape
        height_m = terrain.patch_means_m(config.patch)
        self.patch_grid = self.grid[0] // config.patch, self.grid[1] // config.patch
        self.wind_order = _wind_order(config, terrain, self.patch_grid) if config.wind_order else None

        self.token_embeds = TokenEmbedding(variables, config.dim, config.patch)
        if config.sector_embedding:
            assert self.wind_order is not None, "the configuration was checked"
            shape = (*self.wind_order.table.shape, config.dim)
            self.token_embeds.by_sector = nn.Parameter(torch.zeros(shape))
        self.var_embed = nn.Parameter(torch.zeros(1, variables, config.dim))
        self.var_query = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.var_agg = VariableAggregation(config.dim, config.heads)
        self.pos_embed = nn.Parameter(torch.zeros(1, len(height_m), config.dim))
        self.lead_time_embed = nn.Linear(1, config.dim)
        self.pos_drop = SampleDropout(config.dropout, "tokens")
        places = Places.of(terrain, config.patch) if config.local_bias else None
        self.blocks = nn.ModuleList(
            make_block(config, index, height_m, places) for index in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.dim)
        self.head = _head(config, targets)
        self._initialise(seed)

    def forward(self, inputs: Tensor, wind: Tensor, lead_hours: Tensor, seeds: Seeds = None) -> Tensor:
        """The forecast.

        Args:
            inputs: (B, V, Y, X), normalised.
            wind: (B, 2, Y, X), eastward and northward wind in m/s, not normalised.
            lead_hours: (B, K), lead times in hours. In encoder mode the blocks run once a horizon.
            seeds: one a sample (see `sample_seed`); needed in training only.

        Returns:
            (B, K, C, Y, X), normalised.

        Raises:
            ValueError: a shape does not fit the model, or dropout lacks its seeds.
        """
        self._check_shapes(inputs, wind, lead_hours)
        order_BN = None if self.wind_order is None else self.wind_order(wind)
        way = self._way(wind)
        x_BND = self.embed(inputs) + self._position_embedding(order_BN, wind)
        lead_BKD = self.embed_lead_time(lead_hours)
        if self.config.lead_time == "encoder":
            passes = (
                self.encode(x_BND + lead_BD[:, None], seeds, order_BN, way) for lead_BD in lead_BKD.unbind(1)
            )
            pixels_BKNR = torch.stack([self.head(encoded_BND) for encoded_BND in passes], 1)
        else:
            encoded_BND = self.encode(x_BND, seeds, order_BN, way)
            pixels_BKNR = self.head(encoded_BND[:, None] + lead_BKD[:, :, None])
        forecast = self.unpatchify(_to_raster(pixels_BKNR, order_BN))
        if self.config.prediction == "tendency":
            forecast = forecast + inputs[:, None, self.present].to(forecast.dtype)
        return forecast

    def embed(self, inputs: Tensor) -> Tensor:
        """Tokens (B, N, D) of the fields (B, V, Y, X), in raster order."""
        pixels_BNVQ = patch_pixels(inputs, self.config.patch)
        return collapsed_embedding(
            pixels_BNVQ, self.token_embeds, self.var_embed, self.var_query, self.var_agg
        )

    def embed_lead_time(self, lead_hours: Tensor) -> Tensor:
        """Embedding (B, K, D) of the lead times (B, K) [h]."""
        lead_BK1 = (lead_hours / HOURS_PER_LEAD_UNIT).to(self.lead_time_embed.weight.dtype).unsqueeze(-1)
        lead_BKD: Tensor = self.lead_time_embed(lead_BK1)
        return lead_BKD

    def encode(
        self,
        x_BND: Tensor,
        seeds: Seeds = None,
        order_BN: Tensor | None = None,
        way: Way = RASTER,
    ) -> Tensor:
        """All blocks: tokens in raster order in, encoded tokens in the given order (or raster) out."""
        x_BND = self.pos_drop(x_BND, seeds)
        first, *others = self.blocks
        x_BND = self._run(first, x_BND, seeds, order_BN, way)
        for block in others:
            x_BND = self._run(block, x_BND, seeds, None, replace(way, stored=order_BN))
        normed_BND: Tensor = self.norm(x_BND)
        return normed_BND

    def attention_backends(self, device: torch.device) -> str:
        """What computes the attention of each block on such a device, in words."""
        attentions = [
            module for module in self.modules() if isinstance(module, SelfAttention | ElevationAttention)
        ]
        names = [attention.backend(device, self.var_query.dtype) for attention in attentions]
        runs = [(name, [index for index, _ in run]) for name, run in groupby(enumerate(names), itemgetter(1))]
        return "; ".join(
            f"block {found[0]}: {name}" if len(found) == 1 else f"blocks {found[0]}-{found[-1]}: {name}"
            for name, found in runs
        )

    def unpatchify(self, pixels_BKNR: Tensor) -> Tensor:
        """Fields (B, K, C, Y, X) of the head's R = p p C outputs a token, pixels first, channels last."""
        (rows, columns), p = self.patch_grid, self.config.patch
        tiles = pixels_BKNR.reshape(*pixels_BKNR.shape[:2], rows, columns, p, p, self.targets)
        return tiles.permute(0, 1, 6, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)

    def _way(self, wind: Tensor) -> Way:
        """How the tokens lie to the wind, in raster order, if a block asks for it."""
        return (
            Way(wind=patch_winds(wind, self.config.patch)) if self.config.local_bias == "origin" else RASTER
        )

    def _position_embedding(self, order_BN: Tensor | None, wind: Tensor) -> Tensor:
        """Each token's position embedding, in raster order: that of the scan position it will go to.

        With `sector_embedding` that of its place on the map, and of its sector and place along the wind.
        """
        if order_BN is None:
            return self.pos_embed
        if self.config.sector_embedding:
            assert self.wind_order is not None
            by_place_BND = self.token_embeds.by_sector[self.wind_order.sector(wind).long()].flatten(1, 2)
            return self.pos_embed + wind_scatter(by_place_BND, order_BN)
        return wind_scatter(self.pos_embed.expand(order_BN.shape[0], -1, -1), order_BN)

    def _run(
        self, block: nn.Module, x_BND: Tensor, seeds: Seeds, order_BN: Tensor | None, way: Way
    ) -> Tensor:
        run: Callable[..., Tensor] = block
        if self.config.gradient_checkpointing and self.training and torch.is_grad_enabled():
            # No global random state to keep: masks are functions of the seeds.
            run = partial(checkpoint, block, use_reentrant=False, preserve_rng_state=False)
        return run(x_BND, seeds, order_BN, way)

    def _check_shapes(self, inputs: Tensor, wind: Tensor, lead_hours: Tensor) -> None:
        batch = len(inputs)
        fits = inputs.shape == (batch, self.variables, *self.grid) and wind.shape == (batch, 2, *self.grid)
        if not fits or lead_hours.ndim != 2 or len(lead_hours) != batch or not lead_hours.shape[1]:
            raise ValueError(
                f"The model needs inputs (B, {self.variables}, {self.grid[0]}, {self.grid[1]}), wind (B, 2, "
                f"{self.grid[0]}, {self.grid[1]}) and lead_hours (B, K), but got {tuple(inputs.shape)}, "
                f"{tuple(wind.shape)} and {tuple(lead_hours.shape)}."
            )

    @torch.no_grad()
    def _initialise(self, seed: int) -> None:
        initialise_modules(self, self.head[-1], seed)
        self.var_embed.copy_(torch.as_tensor(sincos_1d(self.config.dim, np.arange(self.variables))))
        position_ND = torch.as_tensor(sincos_2d(self.config.dim, self.patch_grid))
        if self.wind_order is not None and not self.config.sector_embedding:
            position_ND = position_ND[self.wind_order.calm_order()]
        self.pos_embed.copy_(position_ND)


def build_model(config: RunConfig, terrain: Terrain) -> AirQualityViT:
    """The model of a run, with its first weights: the same for every process, from `training.seed`.

    Raises:
        ValueError: the terrain is not that of the configured grid.
    """
    if terrain.elevation_m.shape != tuple(config.data.grid):
        rows, columns = terrain.elevation_m.shape
        raise ValueError(
            f"data.grid is {config.data.grid[0]} x {config.data.grid[1]}, but the terrain has {rows} x "
            f"{columns} cells; set data.grid to the store's."
        )
    variables, targets = config.data.variables, config.data.targets
    tendency = config.model.prediction == "tendency"
    return AirQualityViT(
        config.model,
        terrain,
        variables=len(variables),
        targets=len(targets),
        present=[variables.index(name) for name in targets] if tendency else (),
        seed=config.training.seed,
    )


def _wind_order(config: ModelConfig, terrain: Terrain, patch_grid: tuple[int, int]) -> WindOrder:
    return WindOrder(
        config.patch,
        patch_grid,
        config.regions,
        sectors=config.sectors,
        calm_below=config.calm_below,
        latitude_ascending=terrain.latitude_ascending,
    )


def _head(config: ModelConfig, targets: int) -> nn.Sequential:
    hidden = [
        layer for _ in range(config.decoder_depth) for layer in (nn.Linear(config.dim, config.dim), nn.GELU())
    ]
    return nn.Sequential(*hidden, nn.Linear(config.dim, targets * config.patch**2))


def _to_raster(pixels_BKNR: Tensor, order_BN: Tensor | None) -> Tensor:
    """Undoes the order of the tokens, all horizons at once."""
    if order_BN is None:
        return pixels_BKNR
    B, K, N, R = pixels_BKNR.shape
    rows_BNR = pixels_BKNR.transpose(1, 2).reshape(B, N, K * R)
    return wind_scatter(rows_BNR, order_BN).view(B, N, K, R).transpose(1, 2)
