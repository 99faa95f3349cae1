import numpy as np
import pytest

from aqtopo.data.grid import Array, Grid
from aqtopo.data.topography import Topography, load_topography
from aqtopo.synthetic.population import CITIES, desert_fraction, population_density

CHINA = Grid((32, 64), lat=(17.0, 49.0), lon=(72.0, 136.0))


@pytest.fixture(scope="module")
def topography() -> Topography:
    return load_topography(CHINA)


def at(field: Array, lat: float, lon: float) -> float:
    return float(field[int(lat - 17.0), int(lon - 72.0)])


def test_the_domain_has_about_three_billion_people(topography: Topography) -> None:
    people = (population_density(CHINA, topography) * CHINA.area / 1e6).sum()
    assert 2.2e9 < people < 3.5e9


def test_density_is_zero_at_sea_and_low_in_tibet_and_deserts(topography: Topography) -> None:
    density = population_density(CHINA, topography)
    assert not density[topography.land == 0].any()
    assert at(density, 33.5, 88.5) < 5
    assert at(density, 39.5, 83.5) < 20
    assert at(density, 39.5, 116.5) > 700


def test_city_population_does_not_depend_on_the_grid() -> None:
    domain = {"lat": (28.0, 44.0), "lon": (110.0, 122.0)}
    coarse, fine = Grid((16, 12), **domain), Grid((64, 48), **domain)
    totals = [
        float((population_density(grid, load_topography(grid)) * grid.area / 1e6).sum())
        for grid in (coarse, fine)
    ]
    assert totals[0] == pytest.approx(totals[1], rel=0.05)


def test_cities_lie_inside_the_default_domain() -> None:
    for city in CITIES:
        assert 17 <= city.lat <= 49, city.name
        assert 72 <= city.lon <= 136, city.name


def test_deserts_are_bare_and_the_east_is_not(topography: Topography) -> None:
    bare = desert_fraction(CHINA, topography)
    assert at(bare, 39.5, 83.5) > 0.9
    assert at(bare, 30.5, 117.5) < 0.01
    assert np.all((bare >= 0) & (bare <= 1))
