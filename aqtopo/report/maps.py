"""Fields as coloured map layers, with the colour bars that explain them.

The layers are palette PNGs of one pixel a cell: what is seen is the grid that the model works on, and a page
of dozens of maps stays small. Relief, coast and arrows are laid over them by the page.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.ticker import MaxNLocator

from aqtopo.report.canvas import Canvas
from aqtopo.report.colours import LEVELS, concentration_colours, difference_colours, skill_colours
from aqtopo.report.images import UInt8Array, indexed_png_uri

FloatArray = npt.NDArray[np.floating[Any]]

Kind = Literal["concentration", "difference", "skill"]

_COLOURS = {
    "concentration": concentration_colours,
    "difference": difference_colours,
    "skill": skill_colours,
}
_NOT_DRAWN = 255


@dataclass(frozen=True)
class Scale:
    """Colours of a range of values.

    Attributes:
        low: value of the first colour; lower values get it too.
        high: value of the last colour; higher values get it too.
        kind: what the colours mean; those of differences and of skill are centred on zero.
    """

    low: float
    high: float
    kind: Kind = "concentration"

    @property
    def palette(self) -> UInt8Array:
        """(256, 3) RGB; the last rows are unused."""
        rgb = np.zeros((256, 3), dtype=np.uint8)
        rgb[:LEVELS] = _COLOURS[self.kind]()
        return rgb

    @property
    def gradient(self) -> str:
        """The colours as a CSS gradient from left to right."""
        picked = self.palette[np.linspace(0, LEVELS - 1, 17).astype(int)]
        return f"linear-gradient(to right, {', '.join(_hex(colour) for colour in picked)})"

    @property
    def ticks(self) -> tuple[tuple[float, str], ...]:
        """Round values on the bar: place in percent from the left, and text."""
        values = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        inside = [value for value in values if self.low <= value <= self.high]
        return tuple(
            (100.0 * (value - self.low) / (self.high - self.low), self._text(value)) for value in inside
        )

    def _text(self, value: float) -> str:
        text = f"{value:+g}" if self.kind != "concentration" and value else f"{value:g}"
        return text.replace("-", "\N{MINUS SIGN}")

    def shades(self, values: FloatArray, n: int) -> list[str | None]:
        """Each value's colour out of `n`, as CSS writes it; None for NaN."""
        picked = self.palette[np.linspace(0, LEVELS - 1, n).astype(int)]
        place = np.clip((values - self.low) / (self.high - self.low), 0.0, 1.0)
        return [None if np.isnan(at) else _hex(picked[round(at * (n - 1))]) for at in place.tolist()]

    def layer(self, canvas: Canvas, field: FloatArray) -> str:
        """Data URI of (H, W) values, one pixel a cell, north on top; NaN is not drawn."""
        place = (canvas.north_up(field).astype(np.float64) - self.low) / (self.high - self.low)
        indices = np.full(field.shape, _NOT_DRAWN, dtype=np.uint8)
        known = np.isfinite(place)
        indices[known] = np.round(np.clip(place[known], 0.0, 1.0) * (LEVELS - 1)).astype(np.uint8)
        return indexed_png_uri(indices, self.palette, _NOT_DRAWN)


def concentration_scale(fields: Sequence[FloatArray]) -> Scale:
    """From zero to a value that only one cell in a hundred exceeds, one scale for all the fields."""
    high = max(_percentile(field, 99.0) for field in fields)
    return Scale(0.0, _rounded_up(high))


def difference_scale(differences: Sequence[FloatArray]) -> Scale:
    """Symmetric about zero, up to a size that only two cells in a hundred exceed."""
    high = _rounded_up(max(_percentile(np.abs(field), 98.0) for field in differences))
    return Scale(-high, high, "difference")


def _percentile(field: FloatArray, percent: float) -> float:
    known = field[np.isfinite(field)]
    return float(np.percentile(known, percent)) if known.size else 0.0


def _rounded_up(value: float) -> float:
    """The next 1, 1.5, 2, 3, 4, 5, 6 or 8 times a power of ten; 1 for a field of zeros."""
    if value <= 0.0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(value))
    return float(
        next(s * power for s in (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0) if s * power >= value)
    )


def _hex(colour: UInt8Array) -> str:
    return "#" + "".join(f"{channel:02x}" for channel in colour)
