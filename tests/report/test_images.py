import base64
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from aqtopo.report.base_map import Canvas
from aqtopo.report.images import (
    LEVELS,
    Scale,
    colours,
    concentration_scale,
    difference_scale,
    even_steps,
    oklab,
)

Colours = NDArray[np.uint8]


def steps(shades: Colours) -> NDArray[np.floating]:
    """Return the visible difference of colours ten levels apart; over fewer, rounding to bytes would show."""
    lab = oklab(shades / 255)
    return np.linalg.norm(lab[10::10] - lab[:-10:10], axis=1)


def halves(shades: Colours) -> tuple[Colours, Colours]:
    return shades[: LEVELS // 2], shades[LEVELS // 2 :]


def test_lightness_of_known_colours() -> None:
    known = oklab(np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]))
    np.testing.assert_allclose(known, [[0, 0, 0], [1, 0, 0], [0.62796, 0.22486, 0.12585]], atol=1e-4)


@pytest.mark.parametrize(
    "shades", [colours("concentration"), *halves(colours("difference")), *halves(colours("skill"))]
)
def test_equal_steps_of_a_value_look_equal(shades: Colours) -> None:
    lengths = steps(shades)
    assert lengths.max() < 1.25 * lengths.min()
    lightness = oklab(shades / 255)[:, 0]
    assert (np.diff(lightness) < 0.003).all() or (np.diff(lightness) > -0.003).all()


@pytest.mark.parametrize("shades", [colours("difference"), colours("skill")])
def test_both_sides_of_zero_weigh_the_same(shades: Colours) -> None:
    low, high = (oklab(half / 255)[:, 0] for half in halves(shades))
    np.testing.assert_allclose(low[::-1], high, atol=0.04)
    assert high[0] > 0.95


def test_the_way_leads_from_the_first_to_the_last_colour() -> None:
    grey = even_steps(("#000000", "#ffffff"), 5)
    assert grey[[0, -1]].tolist() == [[0.0] * 3, [1.0] * 3]
    np.testing.assert_allclose(np.diff(oklab(grey)[:, 0]), 0.25, atol=2e-3)


def pixels(uri: str) -> np.ndarray:
    content = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))


def canvas(*, ascending: bool) -> Canvas:
    lat = np.linspace(20.0, 48.0, 4)
    return Canvas(lat if ascending else lat[::-1], np.linspace(74.0, 134.0, 8))


@pytest.mark.parametrize("ascending", [True, False])
def test_north_is_on_top_whichever_way_latitude_runs(ascending: bool) -> None:
    field = np.zeros((4, 8))
    field[3 if ascending else 0] = 100.0  # the northernmost row
    picture = pixels(Scale(0.0, 100.0).layer(canvas(ascending=ascending).north_up(field)))
    assert picture.shape == (4, 8, 4)
    assert picture[0, :, :3].sum() < picture[1:, :, :3].sum() / 3  # high is dark


def test_missing_values_are_transparent_and_extremes_take_the_last_colour() -> None:
    field = np.array([[np.nan, -50.0], [150.0, 1000.0]])
    scale = Scale(0.0, 150.0)
    picture = pixels(scale.layer(field))
    assert picture[0, 0, 3] == 0
    np.testing.assert_array_equal(picture[0, 1, :3], scale.palette[0])
    np.testing.assert_array_equal(picture[1, 0], picture[1, 1])


def test_no_difference_is_almost_white() -> None:
    picture = pixels(Scale(-10.0, 10.0, "difference").layer(np.zeros((4, 8))))
    assert picture[..., :3].min() > 240


def test_concentrations_darken_steadily() -> None:
    lightness = Scale(0.0, 1.0).palette[:250].astype(float) @ np.array([0.2126, 0.7152, 0.0722])
    assert np.all(np.diff(lightness) < 0.5)
    assert lightness[0] - lightness[-1] > 200


@given(st.floats(1e-6, 1e6))
def test_scales_end_at_round_values_that_hold_almost_every_cell(size: float) -> None:
    field = np.linspace(0.0, size, 500).reshape(20, 25)
    scale = concentration_scale([field])
    assert (field > scale.high).mean() <= 0.011
    assert scale.high <= 2 * size
    difference = difference_scale([field - size / 2])
    assert difference.low == -difference.high


def test_an_empty_field_has_a_scale() -> None:
    assert concentration_scale([np.full((2, 2), np.nan)]).high == 1.0


def test_ticks_are_round_and_inside_the_bar() -> None:
    ticks = Scale(-40.0, 40.0, "difference").ticks
    assert [text for _, text in ticks] == ["\N{MINUS SIGN}40", "\N{MINUS SIGN}20", "0", "+20", "+40"]
    assert [place for place, _ in ticks] == [0.0, 25.0, 50.0, 75.0, 100.0]


def test_values_get_one_of_so_many_shades() -> None:
    shades = Scale(-40.0, 40.0, "skill").shades(np.array([-90.0, -40.0, 0.0, 39.0, np.nan]), 5)
    assert shades[0] == shades[1] != shades[2]
    assert shades[2] == "#f7f7f7"
    assert shades[4] is None
