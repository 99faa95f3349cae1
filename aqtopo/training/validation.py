"""Validation loss over the validation years, and probe loss on one fixed batch, in evaluation mode."""

import math
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from aqtopo.config import RunConfig
from aqtopo.data.batch import Batch, BatchReader
from aqtopo.data.samples import sample_table
from aqtopo.data.store import Store
from aqtopo.distributed import process_group
from aqtopo.training.step import NonFiniteLossError, pixel_weight, squared_error

BATCHES_BETWEEN_STOP_CHECKS = 8
"""Number of batches between two checks for a stop request."""


class Batches(Protocol):
    """Validation batches of one rank."""

    def __len__(self) -> int:
        """Return their number, which may differ by one between ranks."""

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over them."""


@torch.no_grad()
def validation_loss(
    engine: Any,
    batches: Batches,
    row_weights: Tensor | None = None,
    limit: int | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> float | None:
    """Return the mean squared error over the valid pixels of all ranks, in normalised units.

    `row_weights` are those of `loss_weights`. `limit` is the number of batches of a rank; None for all.
    `stop_requested` is a collective.

    Returns:
        The loss; None if a stop request ended the validation.

    Raises:
        ValueError: there is no valid pixel.
        NonFiniteLossError: the loss is NaN or infinite.
    """
    engine.eval()
    sums = _sums(engine, batches, row_weights, limit, stop_requested)
    engine.train()
    if sums is None:
        return None
    error, pixels = process_group.total(sums).tolist()
    if pixels == 0:
        raise ValueError(
            "the validation set has no valid pixel: every target is missing or masked. "
            "Check data.validation_years and the store's mask."
        )
    if not math.isfinite(error):
        raise NonFiniteLossError(
            f"the validation loss is {error / pixels}: weights or inputs are not finite. "
            "Resume from an earlier saved state with a lower optimizer.base_lr."
        )
    return float(error / pixels)


def _sums(
    engine: Any,
    batches: Batches,
    row_weights: Tensor | None,
    limit: int | None,
    stop_requested: Callable[[], bool],
) -> Tensor | None:
    """Return this rank's squared error and valid pixels' weight, (2,) float64; None after a stop request."""
    iterator = iter(batches)
    most = process_group.largest(min(len(batches), limit or len(batches)), engine.device)
    sums = torch.zeros(2, dtype=torch.float64, device=engine.device)
    weights = None if row_weights is None else row_weights.to(engine.device)
    for first in range(0, most, BATCHES_BETWEEN_STOP_CHECKS):
        if stop_requested():
            return None
        for batch in islice(iterator, min(BATCHES_BETWEEN_STOP_CHECKS, most - first)):
            on_device = batch.to(engine.device)
            # The engine's forward would register hooks for a backward pass.
            prediction = engine.module(*on_device.model_inputs)
            sums[0] += squared_error(prediction, on_device.targets, on_device.valid, weights)
            sums[1] += pixel_weight(on_device.valid, weights)
    return sums


def probe_batch(store: Store, config: RunConfig) -> Batch:
    """Return the probe batch: one training sample, the same for all ranks and world sizes."""
    table = sample_table(config, store.times, "train")
    samples = np.array([len(table) // 2], dtype=np.int64)
    return BatchReader(store, config).batch(*table.lookup(samples), np.zeros(1, dtype=np.int64))


@torch.no_grad()
def probe_loss(engine: Any, batch: Batch) -> float:
    """Return the unweighted mean squared error on the probe batch in evaluation mode, equal on all ranks."""
    engine.eval()
    on_device = batch.to(engine.device)
    prediction = engine.module(*on_device.model_inputs)
    error = squared_error(prediction, on_device.targets, on_device.valid)
    engine.train()
    return float(error / on_device.valid.sum().clamp(min=1))
