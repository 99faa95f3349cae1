"""Texts of messages and tables."""

import pytest

from aqtopo.text import abridged, duration_text


def test_names_beyond_the_most_are_counted() -> None:
    assert abridged(["a", "b"], 2) == "a, b"
    assert abridged(["a", "b", "c", "d"], 2) == "a, b and 2 more"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (0.0321, "0.032 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (360_029.0, "100 h 00 min"),
        (float("inf"), "inf s"),
    ],
)
def test_durations_have_a_suitable_unit(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
