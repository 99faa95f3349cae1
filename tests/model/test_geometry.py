from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from aqtopo.config import RunConfig
from aqtopo.data import open_store
from aqtopo.model import Terrain, build_model
from aqtopo.model.geometry import EARTH_RADIUS_KM, PatchCentres

LATITUDE = np.array([20.0, 21.0, 22.0, 23.0])
LONGITUDE = 100.0 + np.arange(6.0)
DEGREE_KM = np.pi * EARTH_RADIUS_KM / 180


def test_patch_heights_are_plain_means_in_metres() -> None:
    elevation_m = np.arange(24, dtype=np.float32).reshape(4, 6) * 100
    means = Terrain(elevation_m, LATITUDE, LONGITUDE).patch_means_m(2)
    assert means.dtype == np.float32
    assert means.tolist() == [350.0, 550.0, 750.0, 1550.0, 1750.0, 1950.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -501.0, 9001.0])
def test_refuses_elevations_outside_the_range_of_the_earth(bad: float) -> None:
    elevation_m = np.zeros((4, 6), np.float32)
    elevation_m[1, 2] = bad
    with pytest.raises(ValueError, match=r"elevation (is not finite in 1 of 24 cells|runs from)"):
        Terrain(elevation_m, LATITUDE, LONGITUDE)


def test_accepts_the_dead_sea_and_everest() -> None:
    elevation_m = np.array([[-430.0, 8849.0]] * 4, np.float32)
    assert Terrain(elevation_m, LATITUDE, LONGITUDE[:2]).patch_means_m(2).tolist() == [4209.5, 4209.5]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Terrain(np.zeros((4, 6)), LATITUDE[:3], LONGITUDE),
            r"elevation of shape \(4, 6\), latitude \(3,\)",
        ),
        (lambda: Terrain(np.zeros((4, 6)), LATITUDE, LONGITUDE[:5]), r"and longitude \(5,\)"),
        (lambda: Terrain(np.zeros(4), LATITUDE, LONGITUDE), r"elevation of shape \(4,\)"),
        (
            lambda: Terrain(np.zeros((4, 6)), np.array([20.0, 22.0, 21.0, 23.0]), LONGITUDE),
            "strictly ascending",
        ),
        (
            lambda: Terrain(np.zeros((4, 6)), np.array([20.0, 20.0, 21.0, 23.0]), LONGITUDE),
            "strictly ascending",
        ),
        (
            lambda: Terrain(np.zeros((4, 6)), LATITUDE, LONGITUDE).patch_means_m(4),
            "4 x 6 cells .* patches of 4 x 4",
        ),
    ],
)
def test_refuses_axes_that_do_not_match(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_latitude_ascending_follows_the_axis() -> None:
    assert Terrain(np.zeros((4, 6)), LATITUDE, LONGITUDE).latitude_ascending
    assert not Terrain(np.zeros((4, 6)), LATITUDE[::-1], LONGITUDE).latitude_ascending


def test_flat_terrain_is_sea_level_on_any_grid() -> None:
    terrain = Terrain.flat((128, 256))
    assert terrain.latitude_ascending
    assert not terrain.patch_means_m(2).any()
    assert Terrain.flat((1, 4)).patch_means_m(1).shape == (4,)


@pytest.mark.parametrize("normalization", ["dataset", "topoflow"])
def test_elevation_reaches_the_attention_in_metres_whatever_the_normalisation(
    tiny_store: Path, tiny_config: Callable[..., RunConfig], normalization: str
) -> None:
    store = open_store(tiny_store)
    config = tiny_config(data={"normalization": normalization})
    model = build_model(config, Terrain(store.static["elevation"], store.lat, store.lon))
    metres = dict(model.named_buffers())["blocks.0.attn.height_bits"].view(torch.float32)
    patches = store.static["elevation"].reshape(4, 2, 8, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(metres.numpy(), patches.ravel(), rtol=1e-6)
    assert metres.max() > 2000


def test_patch_centres_have_the_distances_of_the_earth() -> None:
    """Two patches of 2 x 2 degrees on the equator; the chord is shorter than the arc by 5e-5."""
    terrain = Terrain(np.zeros((2, 4), np.float32), np.array([-0.5, 0.5]), 100.0 + np.arange(4.0))
    centres = PatchCentres.from_terrain(terrain, 2)
    assert centres.spacing_km == pytest.approx(2 * DEGREE_KM, rel=1e-4)
    distance_km = centres.km[1] - centres.km[0]
    assert centres.axes[0] @ distance_km == pytest.approx([2 * DEGREE_KM] * 2, rel=1e-3)
    assert centres.axes[1] @ distance_km == pytest.approx([0.0] * 2, abs=1e-9)
