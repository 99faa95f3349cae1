from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aqtopo.config import RunConfig
from aqtopo.inference.load import LoadedRun, load_run
from aqtopo.model.attention import ElevationAttention, SelfAttention, split_heads
from aqtopo.model.geometry import PatchCentres, Terrain, TokenGeometry
from aqtopo.model.locality import LocalityBias
from aqtopo.report.attention import (
    AttentionInput,
    AttentionLayer,
    Place,
    attention_row,
    draw_attention,
    parse_place,
    tokens_at,
    weakened_tokens,
)
from aqtopo.report.base_map import Canvas
from aqtopo.report.forecast_maps import load_case
from aqtopo_kernels import elevation_attention


@pytest.fixture
def run(untrained_run: Path) -> LoadedRun:
    return load_run(untrained_run)


def test_a_place_is_read_with_its_name() -> None:
    assert parse_place("Foot of the ridge=30,-103.5") == Place("Foot of the ridge", 30.0, -103.5)


@pytest.mark.parametrize("text", ["Lanzhou", "Lanzhou=36.1", "Lanzhou=north,east", "36.1,103.8"])
def test_what_is_no_place_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"Lanzhou=36\.1,103\.8"):
        parse_place(text)


def test_wanted_places_come_before_the_cities(run: LoadedRun) -> None:
    canvas = Canvas(run.store.lat, run.store.lon)
    # Cells are 4 degrees from each other, from 20 N and 74 E on; a token is 2 x 2 of them, 8 in a row.
    wanted = [Place("corner", 20.5, 78.1), Place("Lhasa", 47.9, 134.0)]
    names = list(tokens := tokens_at(run, load_case(run), canvas, wanted))
    assert names[:4] == ["Most polluted", "corner", "Lhasa", "Beijing"]
    assert tokens["corner"] == 0
    assert tokens["Lhasa"] == 4 * 8 - 1  # the place that was asked for, not the city


@pytest.mark.parametrize("names", [("corner", "corner"), ("Most polluted",)])
def test_a_duplicate_name_is_refused(run: LoadedRun, names: tuple[str, ...]) -> None:
    canvas = Canvas(run.store.lat, run.store.lon)
    with pytest.raises(ValueError, match=f"--place {names[0]}: another place has this name"):
        tokens_at(run, load_case(run), canvas, [Place(name, 20.5, 78.1) for name in names])


def test_a_place_off_the_grid_is_refused(run: LoadedRun) -> None:
    canvas = Canvas(run.store.lat, run.store.lon)
    with pytest.raises(ValueError, match=r"--place Paris=48\.9,2\.35 is not on the grid"):
        tokens_at(run, load_case(run), canvas, [Place("Paris", 48.9, 2.35)])


def test_the_row_is_that_of_the_kernel() -> None:
    torch.manual_seed(0)
    height_m = np.random.default_rng(0).uniform(0.0, 4000.0, 24).astype(np.float32)
    attention = ElevationAttention(
        16, 2, height_m, alpha=1.5, per_head=True, dropout=0.0, layer="blocks.0.attn"
    )
    x_ND = 3.0 * torch.randn(24, 16)
    q, k, v = (split_heads(part[None], 2) for part in attention.qkv(x_ND).chunk(3, -1))
    expected = [
        elevation_attention(q, k, v),
        elevation_attention(q, k, v, torch.as_tensor(height_m)[None], attention.alpha),
    ]
    rows = attention_row(attention, AttentionInput(x_ND, TokenGeometry()), 7)
    for weights_HN, whole_BHNE in zip(rows, expected, strict=True):
        torch.testing.assert_close(torch.einsum("hn,hne->he", weights_HN, v[0]), whole_BHNE[0, :, 7])


HEIGHT_M = np.random.default_rng(0).uniform(0.0, 4000.0, 24).astype(np.float32)
TERRAIN = Terrain(np.zeros((4, 6), np.float32), 30.0 + np.arange(4), 110.0 + np.arange(6))
CENTRES = PatchCentres.from_terrain(TERRAIN, 1)
OF_BLOCK_0: dict[str, Any] = {"dropout": 0.0, "layer": "blocks.0.attn"}


@pytest.mark.parametrize(
    "make",
    [
        lambda local: SelfAttention(16, 2, locality=local, **OF_BLOCK_0),
        lambda local: ElevationAttention(
            16, 2, HEIGHT_M, alpha=1.5, per_head=False, locality=local, **OF_BLOCK_0
        ),
    ],
    ids=["local", "elevation and local"],
)
def test_the_row_of_any_bias_is_that_of_the_model(make: Callable[[LocalityBias], AttentionLayer]) -> None:
    torch.manual_seed(0)
    attention = make(LocalityBias(1, 1, CENTRES, upwind=True))
    geometry = TokenGeometry(patch_wind=6.0 * torch.randn(1, 2, 24))
    x_ND = 3.0 * torch.randn(24, 16)
    _, _, v = (split_heads(part[None], 2) for part in attention.qkv(x_ND).chunk(3, -1))
    _, biased_HN = attention_row(attention, AttentionInput(x_ND, geometry), 7)
    attended_D = torch.einsum("hn,hne->he", biased_HN, v[0]).flatten()
    torch.testing.assert_close(attention.proj(attended_D), attention(x_ND[None], geometry=geometry)[0, 7])


@pytest.mark.parametrize("alpha", [2.0, 0.0, -0.7])
def test_weakened_tokens_of_an_elevation_bias_do_not_depend_on_alpha(alpha: float) -> None:
    height_m = np.array([500.0, 1000.0, 500.0, 0.0], np.float32)
    attention = ElevationAttention(
        16, 2, height_m, alpha=alpha, per_head=False, dropout=0.0, layer="blocks.0.attn"
    )
    found = weakened_tokens(attention, 0, np.ones((2, 4)))
    assert found.tolist() == [False, True, False, False]


def test_weakened_tokens_get_less_attention(untrained_run: Path) -> None:
    run = load_run(untrained_run)
    lowest = np.where(run.store.static["mask"] > 0, -run.store.static["elevation"], np.nan)[None]
    case = replace(load_case(run), initial=lowest)  # most polluted where it is lowest
    attention = draw_attention(run, case, Canvas(run.store.lat, run.store.lon))
    assert attention is not None
    shown, *cities = attention.places
    without, biased = (int(text.removesuffix(" %")) for text in shown.weakened)
    assert biased < without
    assert attention.destination == "higher ground"
    assert 0.0 <= shown.spot[0] <= 1000.0
    assert [each.title for each in shown.maps] == ["Without the bias", "With the bias", "With minus without"]
    assert {"Beijing", "Lhasa", "Guangzhou"} < {city.name for city in cities}


@pytest.mark.parametrize(
    "bias",
    [
        {"elevation_bias": False, "local_bias": "origin"},
        {"local_bias": "near", "local_heads": 1},
    ],
)
def test_further_biases_are_shown_too(
    tiny_config: Callable[..., RunConfig], save_untrained: Callable[..., Path], bias: dict[str, Any]
) -> None:
    run = load_run(save_untrained(tiny_config(model=bias)))
    attention = draw_attention(run, load_case(run), Canvas(run.store.lat, run.store.lon))
    assert attention is not None
    assert attention.destination == "places that the bias weakens"
    for shown in attention.places:
        without, biased = (int(text.removesuffix(" %")) for text in shown.weakened)
        assert biased < without < 100


def test_a_model_without_the_bias_has_no_such_maps(
    tiny_config: Callable[..., RunConfig], save_untrained: Callable[..., Path]
) -> None:
    run = load_run(save_untrained(tiny_config(model={"elevation_bias": False})))
    case, canvas = load_case(run), Canvas(run.store.lat, run.store.lon)
    assert draw_attention(run, case, canvas) is None
    with pytest.raises(ValueError, match="--place Lanzhou: block 0 of tiny has no bias"):
        draw_attention(run, case, canvas, [Place("Lanzhou", 36.1, 103.8)])
