"""Barriers between pairs of tokens: ridges on the way and what lies upwind; and their way into the model."""

import numpy as np
import pytest
import torch

from aqtopo.model.barriers import FRESH_WIND, ridge_rises_km, unit_ways, upwindness
from tests.model.conftest import ModelMaker, random_inputs, uniform_wind

LEARNT = ("alpha", "upwind", "by_sector", "log_reach", "travel")
ROW = np.array([0, 3000, 500, 0, 1000], np.float32)
LEAD = torch.tensor([[12.0, 48.0]], dtype=torch.float64).expand(2, -1)


def test_what_is_climbed_is_the_highest_ground_on_the_way() -> None:
    rises = ridge_rises_km(ROW, (1, 5))
    # rises[i, j]: from j to i.
    assert rises[2, 0] == pytest.approx(3.0)  # over the ridge
    assert rises[0, 2] == pytest.approx(2.5)  # the same ridge from 500 m
    assert rises[3, 1] == 0.0  # downhill
    assert rises[4, 3] == pytest.approx(1.0)  # up to where it ends
    assert rises[4, 0] == pytest.approx(3.0)
    assert not np.diag(rises).any()
    assert (rises >= 0).all()


def test_a_ridge_beside_the_line_is_not_climbed() -> None:
    heights = np.zeros((5, 5), np.float32)
    heights[0] = 4000.0
    rises = ridge_rises_km(heights.ravel(), (5, 5)).reshape(5, 5, 5, 5)
    assert not rises[4, :, 4, :].any()
    assert rises[0, 2, 4, 2] == pytest.approx(4.0)


@pytest.mark.parametrize("ascending", [True, False])
def test_what_lies_upwind_is_where_the_air_comes_from(ascending: bool) -> None:
    ways = torch.as_tensor(unit_ways((3, 3), latitude_ascending=ascending))
    centre, west, east, south = 4, 3, 5, 1 if ascending else 7
    eastward, northward = (
        torch.tensor(w, dtype=torch.float32).view(1, 2, 1).expand(1, 2, 9) for w in ([8, 0], [0, 8])
    )
    towards_east, towards_north = (upwindness(wind, ways)[0] for wind in (eastward, northward))
    assert towards_east[centre, west] == pytest.approx(1.0)
    assert towards_east[centre, east] == pytest.approx(-1.0)
    assert towards_east[centre, south] == pytest.approx(0.0, abs=1e-6)
    assert towards_north[centre, south] == pytest.approx(1.0)
    light = upwindness(eastward * 0.1, ways)[0]
    assert light[centre, west] == pytest.approx(0.8 / FRESH_WIND)


def test_the_order_of_the_tokens_moves_rows_and_keys(make_model: ModelMaker) -> None:
    """With wind order alone, and positions that do not differ, a forecast is the same as without it."""
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


@pytest.mark.parametrize("direction", ["published", "uphill"])
def test_the_dense_bias_is_that_of_the_kernel_in_every_block(make_model: ModelMaker, direction: str) -> None:
    usual = make_model(elevation_bias=direction, bias_blocks=[0, 1])
    dense = make_model(elevation_bias=direction, bias_blocks=[0, 1], upwind_bias=True)
    weights = usual.state_dict()
    for name in dense.state_dict():
        if name.endswith("attn.upwind"):
            weights[name] = torch.zeros(2, dtype=torch.float64)
    dense.load_state_dict(weights)
    for wind in (uniform_wind(6.0, 3.0), uniform_wind(-2.0, 7.0)):
        expected = usual(random_inputs(), wind, LEAD)
        torch.testing.assert_close(dense(random_inputs(), wind, LEAD), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "without"),
    [
        ({"bias_blocks": [0, 1]}, {"bias_blocks": [0]}),
        ({"elevation_bias": "ridge"}, {"elevation_bias": "published"}),
        ({"upwind_bias": True}, {"upwind_bias": False}),
        ({"local_bias": "near"}, {"local_bias": False}),
        ({"local_bias": "origin"}, {"local_bias": "near"}),
        ({"local_bias": "origin", "elevation_bias": False}, {"local_bias": "origin"}),
        ({"local_bias": "origin", "local_heads": 1}, {"local_bias": "origin"}),
        ({"sector_embedding": True}, {"sector_embedding": False}),
    ],
)
def test_every_option_changes_the_forecast_and_learns(
    make_model: ModelMaker, changes: dict[str, object], without: dict[str, object]
) -> None:
    model = make_model(**changes)
    forecast = model(random_inputs(), uniform_wind(6.0, 3.0), LEAD)
    assert (
        forecast - make_model(**without)(random_inputs(), uniform_wind(6.0, 3.0), LEAD)
    ).abs().max() > 1e-3
    forecast.square().mean().backward()
    learnt = [p for name, p in model.named_parameters() if name.endswith(LEARNT)]
    assert learnt
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in learnt)


def test_with_an_embedding_by_sector_a_calm_day_begins_as_without_wind_order(make_model: ModelMaker) -> None:
    """Tokens know their place on the map from the first step on; attention does not see the order."""
    by_sector, rows = make_model(sector_embedding=True), make_model(wind_order=False)
    weights = by_sector.state_dict()
    weights.pop("token_embeds.by_sector")
    rows.load_state_dict(weights)
    with torch.no_grad():
        by_sector.token_embeds.by_sector.zero_()
    wind = uniform_wind(6.0, 3.0)
    torch.testing.assert_close(
        by_sector(random_inputs(), wind, LEAD), rows(random_inputs(), wind, LEAD), rtol=1e-6, atol=1e-6
    )
