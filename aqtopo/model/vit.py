"""Air-quality vision transformer.

Data flow: patches are embedded in raster order; each token gets the position embedding of its scan position
(and in encoder mode the lead-time embedding); block 0 reads tokens in raster order and writes them in wind
order, which the other blocks keep; layer norm; in decoder mode the lead-time embedding; head; tokens return
to raster order and become pixels.

The position embedding belongs to the scan position and all other features to the patch. The order acts
through this embedding alone, because attention is equivariant to permutations of its tokens.

Shapes: B batch, V input variables, A fields at a valid time, C targets, K horizons, Y, X the grid's cells, N
tokens, D width.
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
from aqtopo.model.dropout import SampleDropout, Seeds
from aqtopo.model.embedding import TokenEmbedding, VariableAggregation, collapsed_embedding, patch_pixels
from aqtopo.model.geometry import RASTER_ORDER, PatchCentres, Terrain, TokenGeometry, patch_mean_wind
from aqtopo.model.initialisation import initialise_modules, sincos_1d, sincos_2d
from aqtopo.model.local_path import LocalPath
from aqtopo.model.pollutant_attention import PollutantAttention
from aqtopo.model.transformer_block import make_block
from aqtopo.model.wind_order import WindOrder
from aqtopo.variables import HORIZONS_H
from aqtopo_kernels import wind_scatter

HOURS_PER_LEAD_UNIT = 100.0
"""Unit of the lead times that the embedding takes [h], as in ClimaX."""


class AirQualityViT(nn.Module):
    """Transformer that forecasts C pollutants at K horizons from V fields at one time.

    State-dict names and shapes are ClimaX's. Tables (orders, heights) follow from the configuration and the
    terrain, so they are buffers outside of the state dict.

    Args:
        config: the `model` part of a run's configuration.
        terrain: elevation [m] and coordinates of the grid.
        variables: V, those at the valid times included.
        targets: C.
        present: index of each target among the input variables, if the model predicts tendencies.
        horizons: lead times with weights of their own in the local path [h].
        seed: of the initial weights.

    Raises:
        ValueError: the grid is not a multiple of the configured patches and regions.
    """

    def __init__(
        self,
        config: ModelConfig,
        terrain: Terrain,
        *,
        variables: int,
        targets: int,
        present: Sequence[int] = (),
        horizons: Sequence[int] = HORIZONS_H,
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
        centres = PatchCentres.from_terrain(terrain, config.patch) if config.local_bias else None
        self.blocks = nn.ModuleList(
            make_block(config, index, _heights(config, index, height_m, self.patch_grid), centres) for index in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.dim)
        self.head = _head(config, targets)
        self.local_path: LocalPath | None = None
        if config.local_path:
            self.local_path = LocalPath(config, self.grid, variables, targets, horizons)
        self._initialise(seed)

    def forward(
        self,
        inputs: Tensor,
        wind: Tensor,
        lead_hours: Tensor,
        seeds: Seeds = None,
        weather: Tensor | None = None,
    ) -> Tensor:
        """Compute the forecast.

        Args:
            inputs: (B, V - A or V - K A, Y, X), normalised.
            wind: (B, 2, Y, X), eastward and northward wind [m s-1], not normalised.
            lead_hours: (B, K), lead times [h]. In encoder mode the blocks run once per horizon.
            seeds: one seed per sample (see `sample_seed`); needed only in training.
            weather: (B, K, A, Y, X), fields at the valid times, normalised. In encoder mode a horizon is
                embedded with its own, in decoder mode all horizons with all.

        Returns:
            (B, K, C, Y, X), normalised.

        Raises:
            ValueError: a shape does not match the model, or dropout has no seeds.
        """
        if weather is not None and weather.shape[2]:
            if self.config.lead_time == "encoder" and weather.shape[1] > 1:
                own = [(lead_hours[:, k, None], weather[:, k, None]) for k in range(lead_hours.shape[1])]
                return torch.cat([self(inputs, wind, lead_B1, seeds, ahead) for lead_B1, ahead in own], 1)
            inputs = torch.cat([inputs, weather.flatten(1, 2)], 1)
        self._check_shapes(inputs, wind, lead_hours)
        order_BN = None if self.wind_order is None else self.wind_order(wind)
        geometry = self._token_geometry(wind)
        x_BND = self.embed(inputs) + self._position_embedding(order_BN, wind)
        lead_BKD = self.embed_lead_time(lead_hours)
        if self.config.lead_time == "encoder":
            passes = (
                self.encode(x_BND + lead_BD[:, None], seeds, order_BN, geometry)
                for lead_BD in lead_BKD.unbind(1)
            )
            pixels_BKNR = torch.stack([self.head(encoded_BND) for encoded_BND in passes], 1)
        else:
            encoded_BND = self.encode(x_BND, seeds, order_BN, geometry)
            pixels_BKNR = self.head(encoded_BND[:, None] + lead_BKD[:, :, None])
        forecast = self.unpatchify(_to_raster(pixels_BKNR, order_BN))
        if self.local_path is not None:
            forecast = forecast + self.local_path(inputs, lead_hours)
        if self.config.prediction == "tendency":
            forecast = forecast + inputs[:, None, self.present].to(forecast.dtype)
        return forecast

    def embed(self, inputs: Tensor) -> Tensor:
        """Embed the fields (B, V, Y, X) as tokens (B, N, D) in raster order."""
        pixels_BNVQ = patch_pixels(inputs, self.config.patch)
        return collapsed_embedding(
            pixels_BNVQ, self.token_embeds, self.var_embed, self.var_query, self.var_agg
        )

    def embed_lead_time(self, lead_hours: Tensor) -> Tensor:
        """Embed the lead times (B, K) [h] as (B, K, D)."""
        lead_BK1 = (lead_hours / HOURS_PER_LEAD_UNIT).to(self.lead_time_embed.weight.dtype).unsqueeze(-1)
        lead_BKD: Tensor = self.lead_time_embed(lead_BK1)
        return lead_BKD

    def encode(
        self,
        x_BND: Tensor,
        seeds: Seeds = None,
        order_BN: Tensor | None = None,
        geometry: TokenGeometry = RASTER_ORDER,
    ) -> Tensor:
        """Run all blocks on tokens in raster order; return them in the given order (raster without one)."""
        x_BND = self.pos_drop(x_BND, seeds)
        first, *others = self.blocks
        x_BND = self._run(first, x_BND, seeds, order_BN, geometry)
        reordered = replace(geometry, raster_index=order_BN)
        for block in others:
            x_BND = self._run(block, x_BND, seeds, None, reordered)
        normed_BND: Tensor = self.norm(x_BND)
        return normed_BND

    def attention_backends(self, device: torch.device) -> str:
        """Return the attention implementation of each block on a device, for logs."""
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
        """Rearrange the head's R = p p C outputs per token, channels last, into fields (B, K, C, Y, X)."""
        (rows, columns), p = self.patch_grid, self.config.patch
        tiles = pixels_BKNR.reshape(*pixels_BKNR.shape[:2], rows, columns, p, p, self.targets)
        return tiles.permute(0, 1, 6, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)

    def _token_geometry(self, wind: Tensor) -> TokenGeometry:
        """Return the geometry of tokens in raster order, with the wind if the local bias uses it."""
        if self.config.local_bias != "origin":
            return RASTER_ORDER
        return TokenGeometry(patch_wind=patch_mean_wind(wind, self.config.patch))

    def _position_embedding(self, order_BN: Tensor | None, wind: Tensor) -> Tensor:
        """Return the embedding of each token's scan position, with tokens in raster order.

        With `sector_embedding`: the sum of the embedding of the token's map position and that of its wind
        sector and scan position.
        """
        if order_BN is None:
            return self.pos_embed
        if self.config.sector_embedding:
            assert self.wind_order is not None
            sector_embed_BND = self.token_embeds.by_sector[self.wind_order.sector(wind).long()].flatten(1, 2)
            return self.pos_embed + wind_scatter(sector_embed_BND, order_BN)
        return wind_scatter(self.pos_embed.expand(order_BN.shape[0], -1, -1), order_BN)

    def _run(
        self,
        block: nn.Module,
        x_BND: Tensor,
        seeds: Seeds,
        order_BN: Tensor | None,
        geometry: TokenGeometry,
    ) -> Tensor:
        run: Callable[..., Tensor] = block
        if self.config.gradient_checkpointing and self.training and torch.is_grad_enabled():
            # Masks are functions of the seeds, so there is no global random state to preserve.
            run = partial(checkpoint, block, use_reentrant=False, preserve_rng_state=False)
        return run(x_BND, seeds, order_BN, geometry)

    def _check_shapes(self, inputs: Tensor, wind: Tensor, lead_hours: Tensor) -> None:
        batch = len(inputs)
        fits = inputs.shape == (batch, self.variables, *self.grid) and wind.shape == (batch, 2, *self.grid)
        if not fits or lead_hours.ndim != 2 or len(lead_hours) != batch or not lead_hours.shape[1]:
            rows, columns = self.grid
            raise ValueError(
                f"The model needs inputs and weather (B, {self.variables}, {rows}, {columns}), wind (B, 2, "
                f"{rows}, {columns}) and lead_hours (B, K), but got {tuple(inputs.shape)}, "
                f"{tuple(wind.shape)} and {tuple(lead_hours.shape)}."
            )

    @torch.no_grad()
    def _initialise(self, seed: int) -> None:
        if self.pos_embed.is_meta:
            return  # there are no values, and PyTorch loads its compiler (1 s) for many operations on meta
        initialise_modules(self, self.head[-1], seed)
        if self.local_path is not None:
            self.local_path.initialise(seed)
        self.var_embed.copy_(torch.as_tensor(sincos_1d(self.config.dim, np.arange(self.variables))))
        position_ND = torch.as_tensor(sincos_2d(self.config.dim, self.patch_grid))
        if self.wind_order is not None and not self.config.sector_embedding:
            position_ND = position_ND[self.wind_order.calm_order()]
        self.pos_embed.copy_(position_ND)


def build_model(config: RunConfig, terrain: Terrain) -> AirQualityViT:
    """Build the model of a run with initial weights from `training.seed`, equal on every rank.

    Raises:
        ValueError: the terrain's grid differs from the configured grid.
    """
    if terrain.elevation_m.shape != tuple(config.data.grid):
        rows, columns = terrain.elevation_m.shape
        raise ValueError(
            f"data.grid is {config.data.grid[0]} x {config.data.grid[1]}, but the terrain has {rows} x "
            f"{columns} cells; set data.grid to the store's grid."
        )
    inputs, targets = config.inputs, config.data.targets
    tendency = config.model.prediction == "tendency"
    return AirQualityViT(
        config.model,
        terrain,
        variables=len(inputs),
        targets=len(targets),
        present=[inputs.index(name) for name in targets] if tendency else (),
        horizons=config.data.horizons,
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
    outputs = targets * config.patch**2
    if not config.pollutant_attention:
        return nn.Sequential(*hidden, nn.Linear(config.dim, outputs))
    pollutants = PollutantAttention(config.dim, config.heads, targets)
    return nn.Sequential(*hidden, pollutants, nn.Linear(pollutants.width * targets, outputs))


def _to_raster(pixels_BKNR: Tensor, order_BN: Tensor | None) -> Tensor:
    """Return the tokens of all horizons to raster order."""
    if order_BN is None:
        return pixels_BKNR
    B, K, N, R = pixels_BKNR.shape
    rows_BNR = pixels_BKNR.transpose(1, 2).reshape(B, N, K * R)
    return wind_scatter(rows_BNR, order_BN).view(B, N, K, R).transpose(1, 2)


def _heights(config, index, height_m, patch_grid):  # type: ignore[no-untyped-def]
    """Return the mean elevation of each patch's window, in a biased block with a scale of its own."""
    if index not in config.bias_blocks or not config.bias_scales:
        return height_m
    side = config.bias_scales[config.bias_blocks.index(index)]
    rows, columns = (size // side for size in patch_grid)
    means = height_m.reshape(rows, side, columns, side).mean((1, 3))
    return means.repeat(side, 0).repeat(side, 1).ravel().astype(np.float32)
