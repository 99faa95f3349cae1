"""Colour scales, and pictures as data URIs.

The colours are perceptually uniform: distances are those of OKLab (Bjorn Ottosson, 2020), and a path through
a few chosen colours is cut into steps of equal length. Over ten levels the longest step is 1.14 times the
shortest, and 1.06 times on either side of zero. The ratio is 1.3 for matplotlib's viridis, which shows clean
air in bright yellow, and 2.4 to 2.8 for its diverging maps BrBG and RdBu.
"""

import base64
import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.ticker import MaxNLocator
from PIL import Image

FloatArray = npt.NDArray[np.floating[Any]]

LEVELS = 250
"""Colours of a scale; the other entries of a palette of 256 are unused."""

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
    """Convert (..., 3) sRGB in [0, 1] to OKLab: lightness, green to red, blue to yellow."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    lab: FloatArray = np.cbrt(linear @ _TO_CONE.T) @ _TO_LAB.T
    return lab


def even_steps(path: Sequence[str], n: int) -> FloatArray:
    """Return (n, 3) sRGB in [0, 1] in equal steps from the first to the last colour, through the others."""
    chosen = np.array([[int(text[at : at + 2], 16) / 255 for at in (1, 3, 5)] for text in path])
    fine = np.linspace(0.0, 1.0, 2001) * (len(chosen) - 1)
    points = np.stack([np.interp(fine, np.arange(len(chosen)), channel) for channel in chosen.T], axis=1)
    distance = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(oklab(points), axis=0), axis=1))])
    wanted = np.linspace(0.0, distance[-1], n)
    steps: FloatArray = np.stack([np.interp(wanted, distance, channel) for channel in points.T], axis=1)
    return steps


UInt8Array = npt.NDArray[np.uint8]
Kind = Literal["concentration", "difference", "skill"]


@functools.cache
def colours(kind: Kind) -> UInt8Array:
    """Return the colours (LEVELS, 3) of a kind of values.

    Concentrations go from pale (clean air) to dark (haze); lightness falls steadily, so the order is visible
    in greyscale and with any colour vision. Differences are blue if negative and red if positive. Skill is
    brown if the model is worse and green if it is better. Both are almost white at zero.
    """
    if kind == "concentration":
        steps = even_steps(_HAZE, LEVELS)
    else:
        sides = (_TOO_LOW, _TOO_HIGH) if kind == "difference" else (_WORSE, _BETTER)
        below, above = (even_steps(side, LEVELS // 2) for side in sides)
        steps = np.concatenate([below[::-1], above])
    return np.round(steps * 255).astype(np.uint8)


def png_uri(pixels: UInt8Array) -> str:
    """Encode (H, W) grey or (H, W, 3) RGB pixels, the first row on top, as a PNG data URI."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return _data_uri("image/png", buffer.getvalue())


def indexed_png_uri(indices: UInt8Array, palette: UInt8Array, transparent: int) -> str:
    """Encode (H, W) indices of palette rows (n, 3) RGB as a PNG data URI, a third of its size in RGBA."""
    image = Image.fromarray(indices, mode="L")
    image.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True, transparency=transparent)
    return _data_uri("image/png", buffer.getvalue())


def svg_uri(figure: Any) -> str:
    """Encode a matplotlib figure as an SVG data URI; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "aqtopo", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _data_uri("image/svg+xml", buffer.getvalue())


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


_NOT_DRAWN = 255


@dataclass(frozen=True)
class Scale:
    """Colour scale of a range of values.

    Attributes:
        low: value of the first colour; lower values get it too.
        high: value of the last colour; higher values get it too.
        kind: meaning of the colours; those of differences and skill are centred on zero.
    """

    low: float
    high: float
    kind: Kind = "concentration"

    @property
    def palette(self) -> UInt8Array:
        """(256, 3) RGB; the last rows are unused."""
        rgb = np.zeros((256, 3), dtype=np.uint8)
        rgb[:LEVELS] = colours(self.kind)
        return rgb

    @property
    def gradient(self) -> str:
        """The colours as a CSS gradient from left to right."""
        picked = self.palette[np.linspace(0, LEVELS - 1, 17).astype(int)]
        return f"linear-gradient(to right, {', '.join(_hex(colour) for colour in picked)})"

    @property
    def ticks(self) -> tuple[tuple[float, str], ...]:
        """Ticks of the colour bar: position [percent from the left] and text."""
        values = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        inside = [value for value in values if self.low <= value <= self.high]
        return tuple(
            (100.0 * (value - self.low) / (self.high - self.low), self._text(value)) for value in inside
        )

    def _text(self, value: float) -> str:
        text = f"{value:+g}" if self.kind != "concentration" and value else f"{value:g}"
        return text.replace("-", "\N{MINUS SIGN}")

    def shades(self, values: FloatArray, n: int) -> list[str | None]:
        """Return each value's CSS colour out of `n`; None for NaN."""
        picked = self.palette[np.linspace(0, LEVELS - 1, n).astype(int)]
        place = np.clip((values - self.low) / (self.high - self.low), 0.0, 1.0)
        return [None if np.isnan(at) else _hex(picked[round(at * (n - 1))]) for at in place.tolist()]

    def layer(self, field: FloatArray) -> str:
        """Return a data URI of (H, W) values, north on top, one pixel per cell; NaN is transparent."""
        place = (field.astype(np.float64) - self.low) / (self.high - self.low)
        indices = np.full(field.shape, _NOT_DRAWN, dtype=np.uint8)
        known = np.isfinite(place)
        indices[known] = np.round(np.clip(place[known], 0.0, 1.0) * (LEVELS - 1)).astype(np.uint8)
        return indexed_png_uri(indices, self.palette, _NOT_DRAWN)


def concentration_scale(fields: Sequence[FloatArray]) -> Scale:
    """Scale from zero to the largest 99th percentile of the fields."""
    high = max(_percentile(field, 99.0) for field in fields)
    return Scale(0.0, _rounded_up(high))


def difference_scale(differences: Sequence[FloatArray]) -> Scale:
    """Scale symmetric about zero, up to the largest 98th percentile of the absolute values."""
    high = _rounded_up(max(_percentile(np.abs(field), 98.0) for field in differences))
    return Scale(-high, high, "difference")


def _percentile(field: FloatArray, percent: float) -> float:
    known = field[np.isfinite(field)]
    return float(np.percentile(known, percent)) if known.size else 0.0


def _rounded_up(value: float) -> float:
    """Round up to 1, 1.5, 2, 3, 4, 5, 6 or 8 times a power of ten; 1 for zero."""
    if value <= 0.0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(value))
    return float(
        next(s * power for s in (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0) if s * power >= value)
    )


def _hex(colour: UInt8Array) -> str:
    return "#" + "".join(f"{channel:02x}" for channel in colour)
