"""The network at work: from a batch of the loader to concentrations."""

import numpy as np
import torch
from numpy.typing import NDArray

from aqtopo.data.batch import Batch
from aqtopo.inference.load import LoadedRun


def predict(run: LoadedRun, batch: Batch) -> NDArray[np.float32]:
    """What a run's model makes of a batch, on the GPU if there is one.

    Returns:
        (B, K, C, H, W) in the units of `aqtopo.variables`.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = run.model.to(device).eval()
    on_device = batch.to(device)
    with torch.inference_mode():
        normalised = model(on_device.inputs, on_device.wind, on_device.lead_hours, None)
    return run.normalization.denormalize(normalised.float().cpu().numpy(), run.config.data.targets)
