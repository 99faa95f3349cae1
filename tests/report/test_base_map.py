import re

import numpy as np
import pytest

from aqtopo.report.base_map import WIDTH, Canvas, draw_base_map, draw_wind_arrows

CHINA = Canvas(np.linspace(17.5, 48.5, 32), np.linspace(72.5, 135.5, 64))


def test_the_scored_area_is_bounded_along_the_cells() -> None:
    mask = np.ones((32, 64))
    mask[10, 20] = 0.0  # one lake: four edges
    base_map = draw_base_map(CHINA, np.zeros((32, 64)), mask)
    assert len(re.findall("M", base_map.coast)) == 4
    assert f"M{20 * WIDTH / 64:.1f}," in base_map.coast
    assert draw_base_map(CHINA, np.zeros((32, 64)), np.ones((32, 64))).coast == ""


def test_a_mountain_has_contours_and_a_plain_has_none() -> None:
    y, x = np.mgrid[:32, :64]
    mountain = 4000.0 * np.exp(-((y - 16) ** 2 + (x - 32) ** 2) / 50.0)
    assert draw_base_map(CHINA, mountain, np.ones((32, 64))).contours.count("M") == 3  # 500, 1500, 3000 m
    assert draw_base_map(CHINA, np.zeros((32, 64)), np.ones((32, 64))).contours == ""


def test_cities_lie_where_they_are() -> None:
    labels = {
        label.text: label for label in draw_base_map(CHINA, np.zeros((32, 64)), np.ones((32, 64))).cities
    }
    assert labels["Beijing"].x == pytest.approx((116.41 - 72.0) / 64.0 * WIDTH)
    assert labels["Beijing"].y < labels["Shanghai"].y < labels["Guangzhou"].y
    elsewhere = Canvas(np.linspace(40.0, 60.0, 8), np.linspace(0.0, 20.0, 8))
    assert draw_base_map(elsewhere, np.zeros((8, 8)), np.ones((8, 8))).cities == ()


def test_degrees_are_round() -> None:
    base_map = draw_base_map(CHINA, np.zeros((32, 64)), np.ones((32, 64)))
    assert [label.text for label in base_map.meridians] == [
        "80°E",
        "90°E",
        "100°E",
        "110°E",
        "120°E",
        "130°E",
    ]
    assert base_map.parallels[0].text == "20°N"


def test_the_map_is_true_to_scale_at_its_middle() -> None:
    assert pytest.approx(2 * np.cos(np.radians(33.0))) == CHINA.aspect
    height_m, width_m = CHINA.cell_size_m
    assert height_m == pytest.approx(111_195, rel=1e-3)
    assert width_m == pytest.approx(height_m * np.cos(np.radians(33.0)))


CALM, BREEZE = np.zeros((32, 64)), np.full((32, 64), 5.0)


def ends_of_shafts(path: str) -> list[tuple[float, float, float, float]]:
    """x, y of the tail and of the tip of each arrow: the first line of its three."""
    number = r"(-?[\d.]+)"
    found = re.findall(rf"M{number},{number}L{number},{number}M", path)
    return [tuple(float(value) for value in values) for values in found]  # type: ignore[misc]


@pytest.mark.parametrize("ascending", [True, False])
def test_arrows_point_where_the_air_moves(ascending: bool) -> None:
    canvas = Canvas(CHINA.lat if ascending else CHINA.lat[::-1], CHINA.lon)
    wind = draw_wind_arrows(canvas, np.array([[BREEZE, CALM], [CALM, BREEZE]]))
    westerly, southerly = (ends_of_shafts(path) for path in wind.paths)
    assert len(westerly) == 16 * 8
    for tail_x, tail_y, tip_x, tip_y in westerly:
        assert tip_x - tail_x == pytest.approx(wind.ten_metres_per_second / 2, abs=0.2)
        assert tip_y == tail_y
    assert all(tip_y < tail_y for _, tail_y, _, tip_y in southerly)


def test_only_the_windy_half_has_arrows() -> None:
    u = np.zeros((32, 64))
    u[16:] = 8.0  # the northern half, for latitude ascends
    (path,) = draw_wind_arrows(CHINA, np.array([[u, CALM]])).paths
    assert len(ends_of_shafts(path)) == 16 * 4
    assert all(tail_y < CHINA.height / 2 for _, tail_y, _, _ in ends_of_shafts(path))


def test_all_times_share_one_scale_and_an_unknown_one_has_no_arrows() -> None:
    unknown = np.full((2, 32, 64), np.nan)
    wind = draw_wind_arrows(CHINA, np.array([[BREEZE, CALM], [2 * BREEZE, CALM], unknown]))
    slow, fast = (ends_of_shafts(path)[0] for path in wind.paths[:2])
    assert fast[2] - fast[0] == pytest.approx(2 * (slow[2] - slow[0]), abs=0.2)
    assert wind.paths[2] == ""
    assert draw_wind_arrows(CHINA, unknown[None]).paths == ("",)
