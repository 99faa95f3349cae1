from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from aqtopo.config import RunConfig
from aqtopo.data import open_store
from aqtopo.data.loader import TrainingLoader
from aqtopo.training.step import _describe_batch, loss_weights, pixel_weight, squared_error

SHAPE = (2, 1, 6, 4, 4)


def test_invalid_targets_count_neither_in_the_loss_nor_in_the_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randn(SHAPE, generator=generator, dtype=torch.float64).requires_grad_()
    target = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    valid = torch.rand(SHAPE, generator=generator) > 0.3
    poisoned = torch.where(valid, target, float("nan"))

    error = squared_error(prediction, poisoned, valid)
    error.backward()

    expected = ((prediction - target)[valid] ** 2).sum()
    torch.testing.assert_close(error, expected)
    assert prediction.grad is not None
    torch.testing.assert_close(prediction.grad, torch.where(valid, 2 * (prediction.detach() - target), 0))


def test_half_precision_predictions_are_summed_in_fp32() -> None:
    prediction = torch.full((1, 1, 1, 256, 256), 2.0, dtype=torch.bfloat16)
    error = squared_error(prediction, torch.zeros(1, 1, 1, 256, 256), torch.ones(1, 1, 1, 256, 256).bool())
    assert error.dtype == torch.float32
    assert error == 4 * 256 * 256


@pytest.mark.parametrize("lead_time", ["encoder", "decoder"])
def test_the_description_of_a_batch_names_every_input(
    tiny_config: Callable[..., RunConfig], lead_time: str
) -> None:
    data = {"forcings": ["insolation"], "weather_at_horizons": ["u"]}
    config = tiny_config(data=data, model={"lead_time": lead_time})
    batch = next(TrainingLoader(open_store(config.data.store), config, 0, 1).steps(0))[0]
    ranges = _describe_batch(batch, config).partition("normalised ranges ")[2]
    assert [text.split(" ")[0] for text in ranges.split(", ")] == list(config.inputs)


def test_area_weights_are_the_cosine_of_the_latitude(
    tiny_store: Path, tiny_config: Callable[..., RunConfig]
) -> None:
    store = open_store(tiny_store)
    assert loss_weights(tiny_config(), store, torch.device("cpu")) is None
    config = tiny_config(training={"area_weighted_loss": True})
    weights = loss_weights(config, store, torch.device("cpu"))
    assert weights is not None
    np.testing.assert_allclose(weights[:, 0], np.cos(np.radians(store.lat)), rtol=1e-6)


def test_weighted_loss_is_the_weighted_mean_over_valid_pixels() -> None:
    generator = torch.Generator().manual_seed(1)
    prediction = torch.randn(SHAPE, generator=generator)
    target = torch.randn(SHAPE, generator=generator)
    valid = torch.rand(SHAPE, generator=generator) > 0.3
    row_weights = torch.tensor([0.9, 0.8, 0.6, 0.3])[:, None]

    loss = squared_error(prediction, target, valid, row_weights) / pixel_weight(valid, row_weights)

    errors = (prediction - target).square().numpy()
    weights = np.broadcast_to(row_weights.numpy(), SHAPE) * valid.numpy()
    np.testing.assert_allclose(loss, np.average(errors, weights=weights), rtol=1e-6)
    assert pixel_weight(valid) == valid.sum()
