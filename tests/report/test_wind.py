import re

import numpy as np
import pytest

from aqtopo.report.canvas import Canvas
from aqtopo.report.wind import draw_wind

CHINA = Canvas(np.linspace(17.5, 48.5, 32), np.linspace(72.5, 135.5, 64))
CALM, BREEZE = np.zeros((32, 64)), np.full((32, 64), 5.0)


def ends_of_shafts(path: str) -> list[tuple[float, float, float, float]]:
    """x, y of the tail and of the tip of each arrow: the first line of its three."""
    number = r"(-?[\d.]+)"
    found = re.findall(rf"M{number},{number}L{number},{number}M", path)
    return [tuple(float(value) for value in values) for values in found]  # type: ignore[misc]


@pytest.mark.parametrize("ascending", [True, False])
def test_arrows_point_where_the_air_moves(ascending: bool) -> None:
    canvas = Canvas(CHINA.lat if ascending else CHINA.lat[::-1], CHINA.lon)
    wind = draw_wind(canvas, np.array([[BREEZE, CALM], [CALM, BREEZE]]))
    westerly, southerly = (ends_of_shafts(path) for path in wind.paths)
    assert len(westerly) == 16 * 8
    for tail_x, tail_y, tip_x, tip_y in westerly:
        assert tip_x - tail_x == pytest.approx(wind.ten_metres_per_second / 2, abs=0.2)
        assert tip_y == tail_y
    assert all(tip_y < tail_y for _, tail_y, _, tip_y in southerly)


def test_only_the_windy_half_has_arrows() -> None:
    u = np.zeros((32, 64))
    u[16:] = 8.0  # the northern half, for latitude ascends
    (path,) = draw_wind(CHINA, np.array([[u, CALM]])).paths
    assert len(ends_of_shafts(path)) == 16 * 4
    assert all(tail_y < CHINA.height / 2 for _, tail_y, _, _ in ends_of_shafts(path))


def test_all_times_share_one_scale_and_an_unknown_one_has_no_arrows() -> None:
    unknown = np.full((2, 32, 64), np.nan)
    wind = draw_wind(CHINA, np.array([[BREEZE, CALM], [2 * BREEZE, CALM], unknown]))
    slow, fast = (ends_of_shafts(path)[0] for path in wind.paths[:2])
    assert fast[2] - fast[0] == pytest.approx(2 * (slow[2] - slow[0]), abs=0.2)
    assert wind.paths[2] == ""
    assert draw_wind(CHINA, unknown[None]).paths == ("",)
