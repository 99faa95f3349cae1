"""The probe loss: the model on one fixed batch, in evaluation mode, before saving and after resuming."""

from typing import Any

import numpy as np
import torch

from aqtopo.config import RunConfig
from aqtopo.data.batch import Batch, BatchReader
from aqtopo.data.samples import sample_table
from aqtopo.data.store import Store
from aqtopo.training.loss import squared_error

TOLERANCE = {"fp32": 1e-5, "bf16": 2e-3, "fp16": 2e-3}
"""Relative, by precision: equal weights may be multiplied in another order on another machine."""


def probe_batch(store: Store, config: RunConfig) -> Batch:
    """One training sample from the middle of the table: the same for every rank, world size and day."""
    table = sample_table(config, store.times, "train")
    samples = np.array([len(table) // 2], dtype=np.int64)
    return BatchReader(store, config).batch(*table.lookup(samples), np.zeros(1, dtype=np.int64))


@torch.no_grad()
def probe_loss(engine: Any, batch: Batch) -> float:
    """Mean squared error over the valid pixels of the probe batch; every rank computes the same."""
    engine.eval()
    on_device = batch.to(engine.device)
    prediction = engine.module(on_device.inputs, on_device.wind, on_device.lead_hours, None)
    error = squared_error(prediction, on_device.targets, on_device.valid)
    engine.train()
    return float(error / on_device.valid.sum().clamp(min=1))
