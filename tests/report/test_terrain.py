import re

import numpy as np
import pytest

from aqtopo.report.canvas import WIDTH, Canvas
from aqtopo.report.terrain import draw_terrain

CHINA = Canvas(np.linspace(17.5, 48.5, 32), np.linspace(72.5, 135.5, 64))


def test_the_scored_area_is_bounded_along_the_cells() -> None:
    mask = np.ones((32, 64))
    mask[10, 20] = 0.0  # one lake: four edges
    terrain = draw_terrain(CHINA, np.zeros((32, 64)), mask)
    assert len(re.findall("M", terrain.coast)) == 4
    assert f"M{20 * WIDTH / 64:.1f}," in terrain.coast
    assert draw_terrain(CHINA, np.zeros((32, 64)), np.ones((32, 64))).coast == ""


def test_a_mountain_has_contours_and_a_plain_has_none() -> None:
    y, x = np.mgrid[:32, :64]
    mountain = 4000.0 * np.exp(-((y - 16) ** 2 + (x - 32) ** 2) / 50.0)
    assert draw_terrain(CHINA, mountain, np.ones((32, 64))).contours.count("M") == 3  # 500, 1500, 3000 m
    assert draw_terrain(CHINA, np.zeros((32, 64)), np.ones((32, 64))).contours == ""


def test_cities_lie_where_they_are() -> None:
    labels = {
        label.text: label for label in draw_terrain(CHINA, np.zeros((32, 64)), np.ones((32, 64))).cities
    }
    assert labels["Beijing"].x == pytest.approx((116.41 - 72.0) / 64.0 * WIDTH)
    assert labels["Beijing"].y < labels["Shanghai"].y < labels["Guangzhou"].y
    elsewhere = Canvas(np.linspace(40.0, 60.0, 8), np.linspace(0.0, 20.0, 8))
    assert draw_terrain(elsewhere, np.zeros((8, 8)), np.ones((8, 8))).cities == ()


def test_degrees_are_round() -> None:
    terrain = draw_terrain(CHINA, np.zeros((32, 64)), np.ones((32, 64)))
    assert [label.text for label in terrain.meridians] == ["80°E", "90°E", "100°E", "110°E", "120°E", "130°E"]
    assert terrain.parallels[0].text == "20°N"


def test_the_map_is_true_to_scale_at_its_middle() -> None:
    assert pytest.approx(2 * np.cos(np.radians(33.0))) == CHINA.aspect
    height_m, width_m = CHINA.cell_size_m
    assert height_m == pytest.approx(111_195, rel=1e-3)
    assert width_m == pytest.approx(height_m * np.cos(np.radians(33.0)))
