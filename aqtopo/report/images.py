"""Pictures as data URIs, so that the page needs no other file."""

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

UInt8Array = npt.NDArray[np.uint8]


def png_uri(pixels: UInt8Array) -> str:
    """Encode pixels as a PNG data URI.

    Args:
        pixels: (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA, the first row on top.
    """
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return _data_uri("image/png", buffer.getvalue())


def indexed_png_uri(indices: UInt8Array, palette: UInt8Array, transparent: int) -> str:
    """Encode colour indices as a palette PNG data URI, a third of the size of the same picture in RGBA.

    Args:
        indices: (H, W) rows into `palette`, the first row on top.
        palette: (n, 3) RGB, at most 256 rows.
        transparent: the index that is not drawn.
    """
    image = Image.fromarray(indices, mode="L")
    image.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True, transparency=transparent)
    return _data_uri("image/png", buffer.getvalue())


def svg_uri(figure: Any) -> str:
    """Encode a matplotlib figure as an SVG data URI; the same figure gives the same bytes."""
    import matplotlib as mpl

    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "aqtopo", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _data_uri("image/svg+xml", buffer.getvalue())


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
