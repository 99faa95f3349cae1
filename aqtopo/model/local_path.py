"""Local path: convolutions on the full grid beside the transformer.

A token holds the fields of a whole patch in a few hundred numbers, too few for every cell's own values.
AI-GAMFS joins a vision transformer and a U-Net for the same reason.

Shapes: B batch, V input variables, C targets, K horizons, L channels, Y, X the grid's cells.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from aqtopo.config import ModelConfig
from aqtopo.config.sections import LEAD_FUNCTIONS, LOCAL_PATH_DILATIONS
from aqtopo.model.initialisation import module_generator


class LocalPath(nn.Module):
    """Three dilated convolutions, each with a learnt map, and a last layer that depends on the lead time.

    There are no batch statistics, so the result does not depend on the other samples of a batch.

    Args:
        config: the `model` part of a run's configuration.
        grid: cells (Y, X).
        variables: V.
        targets: C.
    """

    def __init__(self, config: ModelConfig, grid: tuple[int, int], variables: int, targets: int) -> None:
        super().__init__()
        width = config.local_width
        self.convolutions = nn.ModuleList(
            nn.Conv2d(width if index else variables, width, 3, padding=dilation, dilation=dilation)
            for index, dilation in enumerate(LOCAL_PATH_DILATIONS)
        )
        self.maps = nn.Parameter(torch.zeros(len(LOCAL_PATH_DILATIONS), width, *grid))
        self.lead_time = nn.Sequential(nn.Linear(1, width), nn.GELU(), nn.Linear(width, LEAD_FUNCTIONS))
        self.weight = nn.Parameter(torch.zeros(LEAD_FUNCTIONS, targets, width))
        self.bias = nn.Parameter(torch.zeros(LEAD_FUNCTIONS, targets))

    def forward(self, inputs: Tensor, leads: Tensor) -> Tensor:
        """Compute this path's part of the forecast.

        Args:
            inputs: (B, V, Y, X), normalised.
            leads: (B, K), lead times [100 h].

        Returns:
            (B, K, C, Y, X), normalised.
        """
        dtype = self.weight.dtype
        features_BLYX = inputs.to(dtype)
        for convolution, map_LYX in zip(self.convolutions, self.maps, strict=True):
            features_BLYX = functional.gelu(convolution(features_BLYX) + map_LYX)
        functions_BKR = self.lead_time(leads.to(dtype)[..., None])
        weight_BKCL = torch.einsum("bkr,rcl->bkcl", functions_BKR, self.weight)
        bias_BKC = functions_BKR @ self.bias
        products_BJN = weight_BKCL.flatten(1, 2) @ features_BLYX.flatten(2)
        shape = (*bias_BKC.shape, *features_BLYX.shape[2:])
        forecast: Tensor = products_BJN.view(shape) + bias_BKC[..., None, None]
        return forecast

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Set the initial weights from a seed; at first the output is zero."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                generator = module_generator(seed, f"local_path.{name}")
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        for parameter in (self.maps, self.weight, self.bias):
            nn.init.zeros_(parameter)
