"""The validation loss: the training loss in evaluation mode over the validation years, all horizons."""

import math
from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch

from aqtopo.data.batch import Batch
from aqtopo.training import distributed
from aqtopo.training.loss import squared_error
from aqtopo.training.step import NonFiniteLossError


@torch.no_grad()
def validation_loss(engine: Any, batches: Iterable[Batch], limit: int | None = None) -> float:
    """Mean squared error over the valid pixels of all ranks' batches, in normalised units.

    Args:
        engine: the DeepSpeed engine; put into evaluation mode and back.
        batches: this rank's share of the validation set.
        limit: batches to look at; None for all.

    Raises:
        ValueError: there is no valid pixel at all.
        NonFiniteLossError: the loss is NaN or infinite.
    """
    engine.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=engine.device)
    for batch in islice(batches, limit):
        on_device = batch.to(engine.device)
        # The module, not the engine: its forward would arm the hooks of a backward that never comes.
        prediction = engine.module(on_device.inputs, on_device.wind, on_device.lead_hours, None)
        sums[0] += squared_error(prediction, on_device.targets, on_device.valid)
        sums[1] += on_device.valid.sum()
    engine.train()
    error, pixels = distributed.total(sums).tolist()
    if pixels == 0:
        raise ValueError(
            "the validation set has no valid pixel: every target is missing or masked. "
            "Check data.validation_years and the store's mask."
        )
    if not math.isfinite(error):
        raise NonFiniteLossError(
            f"the validation loss is {error / pixels}: the weights or the inputs have become useless. "
            "Go back to an earlier saved state with a lower optimizer.base_lr."
        )
    return float(error / pixels)
