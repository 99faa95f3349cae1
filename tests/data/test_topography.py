from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest

from aqtopo.data import topography as topography_module
from aqtopo.data.grid import Array, Grid
from aqtopo.data.topography import Topography, load_topography

CHINA = Grid((32, 64), lat=(17.0, 49.0), lon=(72.0, 136.0))


@pytest.fixture(scope="module")
def topography() -> Topography:
    return load_topography(CHINA)


def at(field: Array, lat: float, lon: float) -> float:
    return float(field[int(lat - 17.0), int(lon - 72.0)])


@pytest.mark.parametrize(
    ("place", "lat", "lon", "lowest", "highest"),
    [
        ("Tibetan plateau", 33.5, 88.5, 4500, 5400),
        ("Sichuan basin", 30.5, 105.5, 250, 600),
        ("Tarim basin", 39.5, 83.5, 900, 1300),
        ("North China plain", 36.5, 115.5, 0, 100),
        ("South China Sea", 20.5, 118.5, 0, 0),
    ],
)
def test_known_places_have_their_elevation(
    topography: Topography, place: str, lat: float, lon: float, lowest: float, highest: float
) -> None:
    assert lowest <= at(topography.elevation, lat, lon) <= highest


@pytest.mark.parametrize(("lat", "lon", "land"), [(33.5, 88.5, 1), (20.5, 118.5, 0), (36.5, 115.5, 1)])
def test_mask_tells_land_from_sea(topography: Topography, lat: float, lon: float, land: int) -> None:
    assert at(topography.mask, lat, lon) == land


def test_ridges_lie_between_basin_and_plateau_but_not_in_the_plain(topography: Topography) -> None:
    row = int(30.5 - 17)
    basin, west = int(103.5 - 72), int(102.5 - 72)
    assert topography.ridge_x[row, west] > topography.elevation[row, basin] + 1000
    plain_row, plain = int(33.5 - 17), int(116.5 - 72)
    assert topography.ridge_x[plain_row, plain] < topography.elevation[plain_row, plain] + 60


def test_no_ridge_is_lower_than_both_its_neighbours(topography: Topography) -> None:
    z = topography.elevation
    lower_x, lower_y = np.minimum(z[:, 1:], z[:, :-1]), np.minimum(z[1:], z[:-1])
    assert (topography.ridge_x >= lower_x - 300).all()
    assert np.mean(topography.ridge_x >= lower_x) > 0.95
    assert np.mean(topography.ridge_y >= lower_y) > 0.95


def test_averaging_preserves_the_mean_elevation_of_a_region() -> None:
    coarse, fine = (load_topography(Grid(shape, (20.0, 40.0), (80.0, 110.0))) for shape in ((5, 6), (20, 30)))
    np.testing.assert_allclose(
        coarse.elevation, fine.elevation.reshape(5, 4, 6, 5).mean(axis=(1, 3)), rtol=1e-5, atol=1e-2
    )


def test_unaligned_and_smaller_cells_are_averaged() -> None:
    odd = load_topography(Grid((7, 11), (17.3, 48.9), (72.1, 135.7)))
    tiny = load_topography(Grid((8, 8), (30.0, 30.25), (100.0, 100.25)))
    assert np.isfinite(odd.elevation).all()
    assert 2000 < tiny.elevation.min() <= tiny.elevation.max() < 6000


def test_flattened_topography_keeps_only_the_coast(topography: Topography) -> None:
    flat = topography.flattened()
    np.testing.assert_array_equal(flat.mask, topography.mask)
    for field, like in zip(
        (flat.elevation, flat.relief, flat.ridge_x, flat.ridge_y),
        (topography.elevation, topography.relief, topography.ridge_x, topography.ridge_y),
        strict=True,
    ):
        assert field.shape == like.shape
        assert not field.any()


def test_a_missing_map_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    elsewhere = ModuleSpec("pvlib", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(topography_module, "find_spec", lambda _: elsewhere)
    topography_module._altitude_counts.cache_clear()
    with pytest.raises(ValueError, match=r"Altitude\.h5 is missing.*--force-reinstall pvlib"):
        load_topography(CHINA)
