import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqtopo.data.grid import EARTH_RADIUS, Grid, parse_grid

CHINA = {"lat": (17.0, 49.0), "lon": (72.0, 136.0)}


@given(st.integers(1, 999), st.integers(1, 999))
def test_grid_text_is_rows_then_columns(rows: int, columns: int) -> None:
    assert parse_grid(f" {rows}X{columns} ") == (rows, columns)


@pytest.mark.parametrize("text", ["", "32", "32x", "x64", "32x64x2", "32,64", "-4x8", "3.5x7", "big"])
def test_unreadable_grid_text_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text)) + ".*--grid 32x64"):
        parse_grid(text)


@pytest.mark.parametrize(
    ("shape", "lat", "lon", "message"),
    [
        ((3, 64), (17.0, 49.0), (72.0, 136.0), "3x64 is too small"),
        ((8, 12), (49.0, 17.0), (72.0, 136.0), "--lat 49 17 is not a valid range"),
        ((8, 12), (-10.0, 17.0), (72.0, 136.0), "--lat -10 17"),
        ((8, 12), (17.0, 49.0), (72.0, 200.0), "--lon 72 200"),
    ],
)
def test_invalid_grids_are_refused(
    shape: tuple[int, int], lat: tuple[float, float], lon: tuple[float, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Grid(shape, lat, lon)


def test_cells_of_a_grid_cover_its_part_of_the_sphere() -> None:
    grid = Grid((8, 12), **CHINA)
    zone = np.sin(np.radians(49.0)) - np.sin(np.radians(17.0))
    assert grid.area.sum() * 12 == pytest.approx(EARTH_RADIUS**2 * np.radians(64.0) * zone)
    np.testing.assert_allclose(grid.dx * grid.dy, grid.area, rtol=0.01)


def test_latitude_ascends_and_centres_lie_inside_their_cells() -> None:
    grid = Grid((32, 64), **CHINA)
    assert grid.lat_centres[0] == 17.5
    assert grid.lon_centres[-1] == 135.5
    assert (np.diff(grid.lat_centres) > 0).all()
