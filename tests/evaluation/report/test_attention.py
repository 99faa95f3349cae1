from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aqtopo.checkpoint import load_run
from aqtopo.config import RunConfig
from aqtopo.evaluation.report.attention import Attention, Seen, attention_row, is_hindered, look
from aqtopo.evaluation.report.canvas import Canvas
from aqtopo.evaluation.report.case import load_case
from aqtopo.evaluation.report.places import Place
from aqtopo.model.attention import ElevationAttention, SelfAttention, split_heads
from aqtopo.model.geometry import PatchCentres, Terrain, TokenGeometry
from aqtopo.model.locality import LocalityBias
from aqtopo_kernels import elevation_attention


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
    rows = attention_row(attention, Seen(x_ND, TokenGeometry()), 7)
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
def test_the_row_of_any_bias_is_that_of_the_model(make: Callable[[LocalityBias], Attention]) -> None:
    torch.manual_seed(0)
    attention = make(LocalityBias(1, 1, CENTRES, upwind=True))
    geometry = TokenGeometry(patch_wind=6.0 * torch.randn(1, 2, 24))
    x_ND = 3.0 * torch.randn(24, 16)
    _, _, v = (split_heads(part[None], 2) for part in attention.qkv(x_ND).chunk(3, -1))
    _, biased_HN = attention_row(attention, Seen(x_ND, geometry), 7)
    attended_D = torch.einsum("hn,hne->he", biased_HN, v[0]).flatten()
    torch.testing.assert_close(attention.proj(attended_D), attention(x_ND[None], geometry=geometry)[0, 7])


@pytest.mark.parametrize("alpha", [2.0, 0.0, -0.7])
def test_higher_ground_is_told_by_the_heights_whatever_alpha_has_become(alpha: float) -> None:
    height_m = np.array([500.0, 1000.0, 500.0, 0.0], np.float32)
    attention = ElevationAttention(
        16, 2, height_m, alpha=alpha, per_head=False, dropout=0.0, layer="blocks.0.attn"
    )
    found = is_hindered(attention, 0, np.ones((2, 4)))
    assert found.tolist() == [False, True, False, False]


def test_less_attention_goes_where_the_bias_hinders(untrained_run: Path) -> None:
    run = load_run(untrained_run)
    lowest = np.where(run.store.static["mask"] > 0, -run.store.static["elevation"], np.nan)[None]
    case = replace(load_case(run), initial=lowest)  # most polluted where it is lowest
    gazes = look(run, case, Canvas(run.store.lat, run.store.lon))
    assert gazes is not None
    gaze, *cities = gazes.gazes
    without, biased = (int(text.removesuffix(" %")) for text in gaze.hindered)
    assert biased < without
    assert gazes.where == "higher ground"
    assert 0.0 <= gaze.spot[0] <= 1000.0
    assert [each.title for each in gaze.maps] == ["Without the bias", "With the bias", "With minus without"]
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
    gazes = look(run, load_case(run), Canvas(run.store.lat, run.store.lon))
    assert gazes is not None
    assert gazes.where == "places that lose by it"
    for gaze in gazes.gazes:
        without, biased = (int(text.removesuffix(" %")) for text in gaze.hindered)
        assert biased < without < 100


def test_a_model_without_the_bias_has_no_such_maps(
    tiny_config: Callable[..., RunConfig], save_untrained: Callable[..., Path]
) -> None:
    run = load_run(save_untrained(tiny_config(model={"elevation_bias": False})))
    case, canvas = load_case(run), Canvas(run.store.lat, run.store.lon)
    assert look(run, case, canvas) is None
    with pytest.raises(ValueError, match="--place Lanzhou: block 0 of tiny has no bias"):
        look(run, case, canvas, [Place("Lanzhou", 36.1, 103.8)])
