"""Tests of the model options: each changes the forecast, and its parameters get gradients."""

import pytest
import torch

from tests.model.conftest import ModelMaker, random_inputs, uniform_wind

LEARNED = ("alpha", "log_reach", "travel")
LEAD = torch.tensor([[12.0, 48.0]], dtype=torch.float64).expand(2, -1)


def test_the_biases_follow_the_order_of_the_tokens(make_model: ModelMaker) -> None:
    """Without position embeddings, wind order does not change a forecast."""
    sorted_, raster = (
        make_model(local_bias="origin", bias_blocks=[0, 1], wind_order=on) for on in (True, False)
    )
    raster.load_state_dict(sorted_.state_dict())
    with torch.no_grad():
        for model in (sorted_, raster):
            model.pos_embed.zero_()
    wind = uniform_wind(6.0, 3.0)
    expected = raster(random_inputs(), wind, LEAD)
    torch.testing.assert_close(sorted_(random_inputs(), wind, LEAD), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "without"),
    [
        ({"bias_blocks": [0, 1]}, {"bias_blocks": [0]}),
        ({"elevation_bias": "uphill"}, {"elevation_bias": "published"}),
        ({"local_bias": "near"}, {"local_bias": False}),
        ({"local_bias": "origin"}, {"local_bias": "near"}),
        ({"local_bias": "origin", "elevation_bias": False}, {"local_bias": "origin"}),
        ({"local_bias": "origin", "local_heads": 1}, {"local_bias": "origin"}),
    ],
)
def test_every_option_changes_the_forecast_and_gets_gradients(
    make_model: ModelMaker, changes: dict[str, object], without: dict[str, object]
) -> None:
    model = make_model(**changes)
    forecast = model(random_inputs(), uniform_wind(6.0, 3.0), LEAD)
    assert (
        forecast - make_model(**without)(random_inputs(), uniform_wind(6.0, 3.0), LEAD)
    ).abs().max() > 1e-3
    forecast.square().mean().backward()
    learned = [p for name, p in model.named_parameters() if name.endswith(LEARNED)]
    assert learned
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in learned)
