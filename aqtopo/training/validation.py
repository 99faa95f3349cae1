"""The validation loss: the training loss in evaluation mode over the validation years, all horizons."""

import math
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor

from aqtopo.data.batch import Batch
from aqtopo.training import distributed
from aqtopo.training.loss import squared_error
from aqtopo.training.step import NonFiniteLossError

BATCHES_BETWEEN_LOOKS = 8
"""Batches after which ranks ask each other whether to stop."""


class Batches(Protocol):
    """A rank's share of the validation set."""

    def __len__(self) -> int:
        """How many there are; ranks may differ by one."""

    def __iter__(self) -> Iterator[Batch]:
        """One after the other."""


@torch.no_grad()
def validation_loss(
    engine: Any,
    batches: Batches,
    limit: int | None = None,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> float | None:
    """Mean squared error over the valid pixels of all ranks' batches, in normalised units.

    Args:
        engine: the DeepSpeed engine; put into evaluation mode and back.
        batches: this rank's share of the validation set.
        limit: batches to look at; None for all.
        asked_to_stop: whether all ranks have agreed to stop; asked by all of them, equally often.

    Returns:
        The loss; None where the ranks stopped on the way.

    Raises:
        ValueError: there is no valid pixel at all.
        NonFiniteLossError: the loss is NaN or infinite.
    """
    engine.eval()
    sums = _sums(engine, batches, limit, asked_to_stop)
    engine.train()
    if sums is None:
        return None
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


def _sums(
    engine: Any, batches: Batches, limit: int | None, asked_to_stop: Callable[[], bool]
) -> Tensor | None:
    """This rank's sum of squared errors and number of valid pixels, (2,) float64; None if stopped."""
    own = iter(batches)
    most = distributed.largest(min(len(batches), limit or len(batches)), engine.device)
    sums = torch.zeros(2, dtype=torch.float64, device=engine.device)
    for first in range(0, most, BATCHES_BETWEEN_LOOKS):
        if asked_to_stop():
            return None
        for batch in islice(own, min(BATCHES_BETWEEN_LOOKS, most - first)):
            on_device = batch.to(engine.device)
            # The module, not the engine: its forward would arm the hooks of a backward that never comes.
            prediction = engine.module(on_device.inputs, on_device.wind, on_device.lead_hours, None)
            sums[0] += squared_error(prediction, on_device.targets, on_device.valid)
            sums[1] += on_device.valid.sum()
    return sums
