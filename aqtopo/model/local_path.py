"""Local path: convolutions on the full grid beside the transformer.

A token holds the fields of a whole patch in a few hundred numbers, too few for every cell's own values.
AI-GAMFS joins a vision transformer and a U-Net for the same reason.

Shapes: B batch, V input variables, C targets, K horizons, L channels, Y, X the grid's cells.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from aqtopo.config import ModelConfig
from aqtopo.config.sections import LOCAL_PATH_DILATIONS
from aqtopo.model.initialisation import module_generator


class LocalPath(nn.Module):
    """Three dilated convolutions, each scaled and shifted at every cell, and a last layer for each lead time.

    The scale and the shift of a cell are learnt: what an hour of the day means for a pollutant depends on the
    place. Between two horizons, the last layer's weights are interpolated. There are no batch statistics, so
    the result does not depend on the other samples of a batch.

    Args:
        config: the `model` part of a run's configuration.
        grid: cells (Y, X).
        variables: V.
        targets: C.
        horizons: R lead times with weights of their own [h], ascending.

    Attributes:
        gains: (3, L, Y, X), the scales minus 1.
        maps: (3, L, Y, X), the shifts.
    """

    horizons: Tensor

    def __init__(
        self,
        config: ModelConfig,
        grid: tuple[int, int],
        variables: int,
        targets: int,
        horizons: Sequence[int],
    ) -> None:
        super().__init__()
        width = config.local_width
        self.convolutions = nn.ModuleList(
            nn.Conv2d(width if index else variables, width, 3, padding=dilation, dilation=dilation)
            for index, dilation in enumerate(LOCAL_PATH_DILATIONS)
        )
        self.gains = nn.Parameter(torch.zeros(len(LOCAL_PATH_DILATIONS), width, *grid))
        self.maps = nn.Parameter(torch.zeros(len(LOCAL_PATH_DILATIONS), width, *grid))
        # Integers, which no change of the model's precision rounds.
        self.register_buffer("horizons", torch.tensor(horizons), persistent=False)
        self.weight = nn.Parameter(torch.zeros(len(horizons), targets, width))
        self.bias = nn.Parameter(torch.zeros(len(horizons), targets))

    def forward(self, inputs: Tensor, lead_hours: Tensor) -> Tensor:
        """Compute this path's part of the forecast.

        Args:
            inputs: (B, V, Y, X), normalised.
            lead_hours: (B, K), lead times [h].

        Returns:
            (B, K, C, Y, X), normalised.
        """
        features_BLYX = inputs.to(self.weight.dtype)
        for convolution, gain_LYX, map_LYX in zip(self.convolutions, self.gains, self.maps, strict=True):
            features_BLYX = functional.gelu(torch.addcmul(map_LYX, convolution(features_BLYX), 1 + gain_LYX))
        shares_BKR = self._shares(lead_hours)
        weight_BKCL = torch.einsum("bkr,rcl->bkcl", shares_BKR, self.weight)
        bias_BKC = shares_BKR @ self.bias
        products_BJN = weight_BKCL.flatten(1, 2) @ features_BLYX.flatten(2)
        shape = (*bias_BKC.shape, *features_BLYX.shape[2:])
        forecast: Tensor = products_BJN.view(shape) + bias_BKC[..., None, None]
        return forecast

    def _shares(self, lead_hours: Tensor) -> Tensor:
        """Return the shares (B, K, R) of the horizons' weights, for linear interpolation between horizons."""
        horizons_R = self.horizons.to(torch.float32)
        gaps, beyond = horizons_R.diff(), horizons_R.new_full((1,), torch.inf)
        after_BKR = lead_hours.to(torch.float32)[..., None] - horizons_R
        rising, falling = 1 + after_BKR / torch.cat([beyond, gaps]), 1 - after_BKR / torch.cat([gaps, beyond])
        return torch.minimum(rising, falling).clamp(0, 1).to(self.weight.dtype)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Set the initial weights from a seed; at first the output is zero."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d):
                generator = module_generator(seed, f"local_path.{name}")
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        for parameter in (self.gains, self.maps, self.weight, self.bias):
            nn.init.zeros_(parameter)
