"""The local bias: where heads look, and that folding it into wider heads gives what the formula says."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from aqtopo.model.locality import EARTH_RADIUS_KM, KM_A_DAY, Locality, Places
from aqtopo.model.terrain import Terrain
from aqtopo.model.way import RASTER, Way
from aqtopo_kernels import elevation_attention

A_DEGREE_KM = np.pi * EARTH_RADIUS_KM / 180
EQUATOR = Terrain(np.zeros((1, 9), np.float32), np.array([0.0]), 100.0 + np.arange(9.0))
CHINA = Terrain(np.zeros((12, 20), np.float32), np.linspace(18.0, 53.0, 12), np.linspace(74.0, 135.0, 20))


def bias(locality: Locality, way: Way = RASTER, rows_BN: Tensor | None = None) -> Tensor:
    """(B or 1, H, N, N) the product of the columns, in float64."""
    of_queries, of_keys = locality.columns(rows_BN, way, torch.float64)
    return of_queries @ of_keys.transpose(-1, -2)


def formula(
    locality: Locality, places: Places, wind_B2N: Tensor, rows: Tensor | slice = slice(None)
) -> Tensor:
    """(B, h, rows, N) the Gaussian's exponent as it is written, in float64."""
    x_N3, axes = torch.as_tensor(places.km), torch.as_tensor(places.axes)
    carried_BN3 = KM_A_DAY * torch.einsum("ban,anc->bnc", wind_B2N.double(), axes)
    assert locality.travel is not None
    origin_BhN3 = x_N3 - locality.travel.double().view(1, -1, 1, 1) * carried_BN3[:, None]
    square_BhNN = (origin_BhN3[:, :, rows, None] - x_N3).square().sum(-1)
    width_km = torch.exp(locality.log_reach.double()) * places.spacing_km
    return -square_BhNN / (2 * width_km.square()).view(1, -1, 1, 1)


def random_wind(tokens: int) -> Tensor:
    """(2, 2, N) two samples of wind [m s-1]."""
    return 6.0 * torch.randn(2, 2, tokens, generator=torch.Generator().manual_seed(0))


def test_distances_are_those_on_the_earth() -> None:
    """Of two patches of 2 x 2 degrees on the equator; the chord is shorter than the arc by 5e-5."""
    terrain = Terrain(np.zeros((2, 4), np.float32), np.array([-0.5, 0.5]), 100.0 + np.arange(4.0))
    places = Places.of(terrain, 2)
    assert places.spacing_km == pytest.approx(2 * A_DEGREE_KM, rel=1e-4)
    way_km = places.km[1] - places.km[0]
    assert places.axes[0] @ way_km == pytest.approx([2 * A_DEGREE_KM] * 2, rel=1e-3)
    assert places.axes[1] @ way_km == pytest.approx([0.0] * 2, abs=1e-9)


@pytest.mark.parametrize("ascending", [True, False])
def test_a_south_wind_comes_from_the_south(ascending: bool) -> None:
    latitude = np.array([30.0, 31.0, 32.0])
    terrain = Terrain(
        np.zeros((3, 1), np.float32), latitude if ascending else latitude[::-1], np.array([110.0])
    )
    locality = Locality(2, 0, Places.of(terrain, 1), carried=True)
    a_degree_a_day = torch.tensor([0.0, A_DEGREE_KM / KM_A_DAY]).view(1, 2, 1).expand(1, 2, 3)
    south = 0 if ascending else 2
    assert bias(locality, Way(wind=a_degree_a_day))[0, 1, 1].argmax() == south


def test_attention_looks_where_the_air_was() -> None:
    """A west wind that makes a patch in half a day: two patches to the west a day ago."""
    places = Places.of(EQUATOR, 1)
    wind = torch.tensor([2 * A_DEGREE_KM / KM_A_DAY, 0.0]).view(1, 2, 1).expand(1, 2, 9)
    strongest = bias(Locality(3, 0, places, carried=True), Way(wind=wind))[0, :, 6].argmax(-1)
    assert strongest.tolist() == [6, 5, 4]  # now, half a day ago, a day ago
    near = bias(Locality(3, 0, places, carried=False))[0]
    assert near.argmax(-1).tolist() == [list(range(9))] * 3


def test_a_single_patch_has_no_neighbour_and_attends_to_itself() -> None:
    alone = Terrain(np.zeros((1, 1), np.float32), np.array([30.0]), np.array([110.0]))
    locality = Locality(2, 0, Places.of(alone, 1), carried=True)
    assert bias(locality, Way(wind=random_wind(1))).tolist() == [[[[0.0]]] * 2] * 2


def test_further_heads_see_the_whole_map() -> None:
    first, *others = bias(Locality(1, 2, Places.of(EQUATOR, 1), carried=False))[0]
    assert first[0, 1] < -0.1
    assert not any(other.any() for other in others)


def test_the_columns_make_the_formula() -> None:
    places = Places.of(CHINA, 1)
    locality, wind = Locality(3, 0, places, carried=True), random_wind(len(places.km))
    torch.testing.assert_close(
        bias(locality, Way(wind=wind)), formula(locality, places, wind), rtol=1e-5, atol=1e-4
    )


def test_rows_and_keys_are_looked_up_where_the_tokens_are() -> None:
    places = Places.of(EQUATOR, 1)
    locality, wind = Locality(2, 1, places, carried=True), random_wind(9)
    rows, stored = (torch.argsort(torch.rand(2, 9)).int() for _ in range(2))
    found = bias(locality, Way(stored, wind=wind), rows)
    raster = bias(locality, Way(wind=wind))
    for sample in range(2):
        expected = raster[sample][:, rows[sample].long()][:, :, stored[sample].long()]
        torch.testing.assert_close(found[sample], expected)


def attended(dtype: torch.dtype, attention: Any) -> tuple[Tensor, ...]:
    """Attention with a local bias over China, and its gradients: of q, k, v, width and travel time."""
    torch.manual_seed(0)
    places = Places.of(CHINA, 1)
    N = len(places.km)
    locality = Locality(2, 1, places, carried=True).to(torch.float64)
    q, k, v = (torch.randn(2, 3, N, 16, dtype=torch.float64) for _ in range(3))
    leaves = [x.to(dtype).requires_grad_() for x in (q, k, v)]
    learnt = list(locality.to(dtype).parameters())
    out = attention(locality, places, Way(wind=random_wind(N)), *leaves)
    weights = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((out.double() * weights).sum(), [*leaves, *learnt])
    return out.detach(), *gradients


@pytest.mark.parametrize("autocast", [False, True])
def test_scores_over_thousands_of_kilometres_keep_their_digits(autocast: bool) -> None:
    """Of the reference grid, 64 x 128 patches of half a degree, where they matter to the softmax."""
    latitude, longitude = 17.125 + 0.25 * np.arange(128), 72.125 + 0.25 * np.arange(256)
    places = Places.of(Terrain(np.zeros((128, 256), np.float32), latitude, longitude), 2)
    locality, wind, rows = Locality(8, 0, places, carried=True), random_wind(8192)[:1], torch.arange(64) * 127
    scores: list[Tensor] = []

    def keep_scores(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None) -> Tensor:
        assert scale is not None
        scores.append(scale * q[:, :, rows] @ k.transpose(-1, -2))
        return v

    nothing = torch.zeros((1, 8, 8192, 16), dtype=torch.bfloat16)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            locality.attend(keep_scores, nothing, nothing, nothing, None, Way(wind=wind))
        exact = formula(locality, places, wind, rows)
    matter = exact > exact.amax(-1, keepdim=True) - 10.0
    error = (scores[0] - exact)[matter]
    assert error.abs().max() < 2e-3
    assert error.square().mean().sqrt() < 2e-4


def by_columns(locality: Locality, _: Places, way: Way, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return locality.attend(elevation_attention, q, k, v, None, way)


def by_formula(locality: Locality, places: Places, way: Way, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    assert way.wind is not None
    bias_BhNN = formula(locality, places, way.wind)
    bias_BHNN = functional.pad(bias_BhNN, (0, 0, 0, 0, 0, 1)).to(q.dtype)
    return functional.scaled_dot_product_attention(q, k, v, bias_BHNN)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 3e-4), (torch.bfloat16, 3e-2)]
)
def test_attention_and_gradients_are_those_of_the_formula(dtype: torch.dtype, tolerance: float) -> None:
    """Relative to the largest of each; places are float32 in any case, and bfloat16 rounds q, k and v."""
    expected = attended(torch.float64, by_formula)
    for found, exact in zip(attended(dtype, by_columns), expected, strict=True):
        assert found.dtype == dtype
        assert (found - exact).abs().max() <= tolerance * exact.abs().max()


def test_casting_the_model_leaves_places_as_they_are() -> None:
    places = Places.of(CHINA, 1)
    plain, cast = Locality(1, 0, places, carried=False), Locality(1, 0, places, carried=False).bfloat16()
    torch.testing.assert_close(
        bias(cast), bias(plain), rtol=1e-2, atol=1e-9
    )  # the width is rounded, all alike
