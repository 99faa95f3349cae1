"""The colours of maps: even to the eye, so that equal steps of a value look like equal steps.

Distances are those of OKLab (Bjorn Ottosson, 2020), in which equal steps look alike: a few colours are
chosen, and the way that leads through them is cut into steps of the same length. Over ten levels the longest
step is 1.14 times the shortest, and 1.06 times on either side of zero. Of matplotlib's maps from pale to dark
viridis comes nearest, with 1.3, and begins with bright yellow for clean air; of those with two sides none
does: BrBG and RdBu have 2.4 to 2.8.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]

LEVELS = 250
"""Colours in a range of values; the rest of a palette of 256 is kept for what is not drawn."""

_HAZE = ("#f4f8f4", "#d9ebc8", "#f6e08a", "#f2b04d", "#dd6b35", "#b02a3c", "#6d1a52", "#2f0d3f")
_TOO_LOW = ("#f7f7f7", "#a7cbe3", "#4a94c6", "#1f5f9e", "#0a2f5c")
_WORSE = ("#f7f7f7", "#e6c69c", "#c4873e", "#8b5214", "#4f2a02")
_BETTER = ("#f7f7f7", "#aed8bf", "#55a883", "#1c7555", "#00402b")
_TOO_HIGH = ("#f7f7f7", "#f5b79b", "#d9705a", "#ab2434", "#5c0a20")

_TO_CONE = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def oklab(rgb: FloatArray) -> FloatArray:
    """(..., 3) lightness, green to red, blue to yellow, of (..., 3) sRGB in [0, 1]."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    lab: FloatArray = np.cbrt(linear @ _TO_CONE.T) @ _TO_LAB.T
    return lab


@functools.cache
def concentration_colours() -> npt.NDArray[np.uint8]:
    """(LEVELS, 3) clean air pale, haze dark.

    Lightness falls steadily, so the order survives greyscale and colour blindness.
    """
    return _as_bytes(even_steps(_HAZE, LEVELS))


@functools.cache
def difference_colours() -> npt.NDArray[np.uint8]:
    """(LEVELS, 3) blue where a difference is negative, red where it is positive, almost white at zero."""
    return _from_the_middle(_TOO_LOW, _TOO_HIGH)


@functools.cache
def skill_colours() -> npt.NDArray[np.uint8]:
    """(LEVELS, 3) brown where the model is worse than its reference, green where it is better."""
    return _from_the_middle(_WORSE, _BETTER)


def even_steps(colours: Sequence[str], n: int) -> FloatArray:
    """(n, 3) sRGB in [0, 1] from the first to the last colour, by way of the others."""
    chosen = np.array([[int(text[at : at + 2], 16) / 255 for at in (1, 3, 5)] for text in colours])
    fine = np.linspace(0.0, 1.0, 2001) * (len(chosen) - 1)
    way = np.stack([np.interp(fine, np.arange(len(chosen)), channel) for channel in chosen.T], axis=1)
    walked = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(oklab(way), axis=0), axis=1))])
    wanted = np.linspace(0.0, walked[-1], n)
    steps: FloatArray = np.stack([np.interp(wanted, walked, channel) for channel in way.T], axis=1)
    return steps


def _from_the_middle(below: Sequence[str], above: Sequence[str]) -> npt.NDArray[np.uint8]:
    low, high = (even_steps(colours, LEVELS // 2) for colours in (below, above))
    return _as_bytes(np.concatenate([low[::-1], high]))


def _as_bytes(rgb: FloatArray) -> npt.NDArray[np.uint8]:
    return np.round(rgb * 255).astype(np.uint8)
