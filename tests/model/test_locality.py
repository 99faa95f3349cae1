"""Tests of the locality bias: its centre, and its folding into wider heads against the formula."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from aqtopo.model.geometry import EARTH_RADIUS_KM, RASTER_ORDER, PatchCentres, Terrain, TokenGeometry
from aqtopo.model.locality import KM_A_DAY, LocalityBias
from aqtopo_kernels import elevation_attention

DEGREE_KM = np.pi * EARTH_RADIUS_KM / 180
EQUATOR = Terrain(np.zeros((1, 9), np.float32), np.array([0.0]), 100.0 + np.arange(9.0))
CHINA = Terrain(np.zeros((12, 20), np.float32), np.linspace(18.0, 53.0, 12), np.linspace(74.0, 135.0, 20))


def bias(
    locality: LocalityBias, geometry: TokenGeometry = RASTER_ORDER, query_index_BN: Tensor | None = None
) -> Tensor:
    """Return the product of the columns in float64, (B or 1, H, N, N)."""
    query_columns, key_columns = locality.columns(query_index_BN, geometry, torch.float64)
    return query_columns @ key_columns.transpose(-1, -2)


def formula(
    locality: LocalityBias, centres: PatchCentres, wind_B2N: Tensor, rows: Tensor | slice = slice(None)
) -> Tensor:
    """Compute the Gaussian's exponent directly in float64, (B, h, rows, N)."""
    x_N3, axes = torch.as_tensor(centres.km), torch.as_tensor(centres.axes)
    velocity_BN3 = KM_A_DAY * torch.einsum("ban,anc->bnc", wind_B2N.double(), axes)
    assert locality.travel is not None
    origin_BhN3 = x_N3 - locality.travel.double().view(1, -1, 1, 1) * velocity_BN3[:, None]
    square_BhNN = (origin_BhN3[:, :, rows, None] - x_N3).square().sum(-1)
    width_km = torch.exp(locality.log_reach.double()) * centres.spacing_km
    return -square_BhNN / (2 * width_km.square()).view(1, -1, 1, 1)


def random_wind(tokens: int) -> Tensor:
    """Return two samples of patch wind [m s-1], (2, 2, N)."""
    return 6.0 * torch.randn(2, 2, tokens, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("ascending", [True, False])
def test_a_south_wind_comes_from_the_south(ascending: bool) -> None:
    latitude = np.array([30.0, 31.0, 32.0])
    terrain = Terrain(
        np.zeros((3, 1), np.float32), latitude if ascending else latitude[::-1], np.array([110.0])
    )
    locality = LocalityBias(2, 0, PatchCentres.from_terrain(terrain, 1), upwind=True)
    degree_per_day = torch.tensor([0.0, DEGREE_KM / KM_A_DAY]).view(1, 2, 1).expand(1, 2, 3)
    south = 0 if ascending else 2
    assert bias(locality, TokenGeometry(patch_wind=degree_per_day))[0, 1, 1].argmax() == south


def test_the_bias_is_centred_on_the_departure_point() -> None:
    """The west wind carries air over one patch in half a day and over two patches in a day."""
    centres = PatchCentres.from_terrain(EQUATOR, 1)
    wind = torch.tensor([2 * DEGREE_KM / KM_A_DAY, 0.0]).view(1, 2, 1).expand(1, 2, 9)
    strongest = bias(LocalityBias(3, 0, centres, upwind=True), TokenGeometry(patch_wind=wind))[
        0, :, 6
    ].argmax(-1)
    assert strongest.tolist() == [6, 5, 4]  # travel times of 0, 0.5 and 1 d
    near = bias(LocalityBias(3, 0, centres, upwind=False))[0]
    assert near.argmax(-1).tolist() == [list(range(9))] * 3


def test_a_single_patch_without_neighbours_attends_to_itself() -> None:
    alone = Terrain(np.zeros((1, 1), np.float32), np.array([30.0]), np.array([110.0]))
    locality = LocalityBias(2, 0, PatchCentres.from_terrain(alone, 1), upwind=True)
    assert bias(locality, TokenGeometry(patch_wind=random_wind(1))).tolist() == [[[[0.0]]] * 2] * 2


def test_heads_without_the_bias_come_last() -> None:
    first, *others = bias(LocalityBias(1, 2, PatchCentres.from_terrain(EQUATOR, 1), upwind=False))[0]
    assert first[0, 1] < -0.1
    assert not any(other.any() for other in others)


def test_the_product_of_the_columns_equals_the_formula() -> None:
    centres = PatchCentres.from_terrain(CHINA, 1)
    locality, wind = LocalityBias(3, 0, centres, upwind=True), random_wind(len(centres.km))
    torch.testing.assert_close(
        bias(locality, TokenGeometry(patch_wind=wind)), formula(locality, centres, wind), rtol=1e-5, atol=1e-4
    )


def test_columns_follow_the_order_of_queries_and_keys() -> None:
    centres = PatchCentres.from_terrain(EQUATOR, 1)
    locality, wind = LocalityBias(2, 1, centres, upwind=True), random_wind(9)
    rows, raster_index = (torch.argsort(torch.rand(2, 9)).int() for _ in range(2))
    found = bias(locality, TokenGeometry(raster_index, patch_wind=wind), rows)
    raster = bias(locality, TokenGeometry(patch_wind=wind))
    for sample in range(2):
        expected = raster[sample][:, rows[sample].long()][:, :, raster_index[sample].long()]
        torch.testing.assert_close(found[sample], expected)


def attended(dtype: torch.dtype, attention: Any) -> tuple[Tensor, ...]:
    """Return attention over China, and the gradients of q, k, v, width and travel time."""
    torch.manual_seed(0)
    centres = PatchCentres.from_terrain(CHINA, 1)
    N = len(centres.km)
    locality = LocalityBias(2, 1, centres, upwind=True).to(torch.float64)
    q, k, v = (torch.randn(2, 3, N, 16, dtype=torch.float64) for _ in range(3))
    leaves = [x.to(dtype).requires_grad_() for x in (q, k, v)]
    learnt = list(locality.to(dtype).parameters())
    out = attention(locality, centres, TokenGeometry(patch_wind=random_wind(N)), *leaves)
    weights = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((out.double() * weights).sum(), [*leaves, *learnt])
    return out.detach(), *gradients


@pytest.mark.parametrize("autocast", [False, True])
def test_scores_are_precise_over_thousands_of_kilometres(autocast: bool) -> None:
    """Checks 64 x 128 half-degree patches, for the scores that matter in the softmax."""
    latitude, longitude = 17.125 + 0.25 * np.arange(128), 72.125 + 0.25 * np.arange(256)
    centres = PatchCentres.from_terrain(Terrain(np.zeros((128, 256), np.float32), latitude, longitude), 2)
    locality, wind, rows = (
        LocalityBias(8, 0, centres, upwind=True),
        random_wind(8192)[:1],
        torch.arange(64) * 127,
    )
    scores: list[Tensor] = []

    def keep_scores(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None) -> Tensor:
        assert scale is not None
        scores.append(scale * q[:, :, rows] @ k.transpose(-1, -2))
        return v

    nothing = torch.zeros((1, 8, 8192, 16), dtype=torch.bfloat16)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            locality.attend(keep_scores, nothing, nothing, nothing, None, TokenGeometry(patch_wind=wind))
        exact = formula(locality, centres, wind, rows)
    matter = exact > exact.amax(-1, keepdim=True) - 10.0
    error = (scores[0] - exact)[matter]
    assert error.abs().max() < 2e-3
    assert error.square().mean().sqrt() < 2e-4


def by_columns(
    locality: LocalityBias, _: PatchCentres, geometry: TokenGeometry, q: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    return locality.attend(elevation_attention, q, k, v, None, geometry)


def by_formula(
    locality: LocalityBias, centres: PatchCentres, geometry: TokenGeometry, q: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    assert geometry.patch_wind is not None
    bias_BhNN = formula(locality, centres, geometry.patch_wind)
    bias_BHNN = functional.pad(bias_BhNN, (0, 0, 0, 0, 0, 1)).to(q.dtype)
    return functional.scaled_dot_product_attention(q, k, v, bias_BHNN)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 3e-4), (torch.bfloat16, 3e-2)]
)
def test_attention_and_gradients_are_those_of_the_formula(dtype: torch.dtype, tolerance: float) -> None:
    """Errors are relative to the largest value. Positions are always float32; bfloat16 rounds q, k and v."""
    expected = attended(torch.float64, by_formula)
    for found, exact in zip(attended(dtype, by_columns), expected, strict=True):
        assert found.dtype == dtype
        assert (found - exact).abs().max() <= tolerance * exact.abs().max()


def test_casting_the_model_keeps_positions_in_float32() -> None:
    centres = PatchCentres.from_terrain(CHINA, 1)
    plain, cast = (
        LocalityBias(1, 0, centres, upwind=False),
        LocalityBias(1, 0, centres, upwind=False).bfloat16(),
    )
    torch.testing.assert_close(bias(cast), bias(plain), rtol=1e-2, atol=1e-9)  # the width is rounded
