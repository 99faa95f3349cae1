import numpy as np
import pytest
from numpy.typing import NDArray

from aqtopo.report.colours import (
    LEVELS,
    concentration_colours,
    difference_colours,
    even_steps,
    oklab,
    skill_colours,
)

Colours = NDArray[np.uint8]


def steps(colours: Colours) -> NDArray[np.floating]:
    """How far apart colours look that are ten levels from each other; over fewer, whole bytes would show."""
    lab = oklab(colours / 255)
    return np.linalg.norm(lab[10::10] - lab[:-10:10], axis=1)


def halves(colours: Colours) -> tuple[Colours, Colours]:
    return colours[: LEVELS // 2], colours[LEVELS // 2 :]


def test_lightness_of_known_colours() -> None:
    known = oklab(np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]))
    np.testing.assert_allclose(known, [[0, 0, 0], [1, 0, 0], [0.62796, 0.22486, 0.12585]], atol=1e-4)


@pytest.mark.parametrize(
    "colours", [concentration_colours(), *halves(difference_colours()), *halves(skill_colours())]
)
def test_equal_steps_of_a_value_look_equal(colours: Colours) -> None:
    lengths = steps(colours)
    assert lengths.max() < 1.25 * lengths.min()
    lightness = oklab(colours / 255)[:, 0]
    assert (np.diff(lightness) < 0.003).all() or (np.diff(lightness) > -0.003).all()


@pytest.mark.parametrize("colours", [difference_colours(), skill_colours()])
def test_both_sides_of_zero_weigh_the_same(colours: Colours) -> None:
    low, high = (oklab(half / 255)[:, 0] for half in halves(colours))
    np.testing.assert_allclose(low[::-1], high, atol=0.04)
    assert high[0] > 0.95


def test_the_way_leads_from_the_first_to_the_last_colour() -> None:
    grey = even_steps(("#000000", "#ffffff"), 5)
    assert grey[[0, -1]].tolist() == [[0.0] * 3, [1.0] * 3]
    np.testing.assert_allclose(np.diff(oklab(grey)[:, 0]), 0.25, atol=2e-3)
