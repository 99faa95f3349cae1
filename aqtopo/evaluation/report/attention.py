"""What one cell attends to in block 0, with the elevation bias and without it: one row of the softmax.

Only the row of the chosen token is made, so that memory grows with the tokens and not with their square.

Shapes: H heads, N tokens, D width, E = D / H.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aqtopo.checkpoint import LoadedRun
from aqtopo.evaluation.forecast import forecast
from aqtopo.evaluation.report.canvas import Canvas
from aqtopo.evaluation.report.case import Case
from aqtopo.evaluation.report.maps import Scale, concentration_scale, difference_scale
from aqtopo.evaluation.report.panels import Map
from aqtopo.model.attention import ElevationAttention

FloatArray = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Gaze:
    """The attention of one token, drawn.

    Attributes:
        place: what was chosen, in words.
        spot: its drawing position, across and down.
        maps: without bias, with bias, and the difference.
        scale: colours of the first two, in shares of an even attention.
        difference: colours of the third.
        above: the ground that the bias hinders, `higher` or `lower` than the chosen token's.
        hindered: share of the attention that goes there, without and with bias, as text.
        heads: over how many heads it is the mean.
    """

    place: str
    spot: tuple[float, float]
    maps: tuple[Map, Map, Map]
    scale: Scale
    difference: Scale
    above: str
    hindered: tuple[str, str]
    heads: int


def attention_row(attention: ElevationAttention, x_ND: Tensor, token: int) -> Tensor:
    """(2, H, N) how much `token` attends to each token: without the bias, and with it.

    Args:
        attention: of block 0.
        x_ND: its input, raster order.
        token: raster index of the query.
    """
    with torch.no_grad():
        q_ND, k_ND, _ = attention.qkv(x_ND).float().chunk(3, -1)
        q_HE = q_ND[token].view(attention.heads, -1)
        k_NHE = k_ND.view(len(k_ND), attention.heads, -1)
        scores_HN = torch.einsum("he,nhe->hn", q_HE, k_NHE) / q_HE.shape[-1] ** 0.5
        height_N = attention.height_bits.view(torch.float32)
        rise_N = torch.clamp(height_N - height_N[token], min=0.0) / 1000.0
        biased_HN = scores_HN - attention.alpha.float()[:, None] * rise_N
        return torch.stack([scores_HN, biased_HN]).softmax(-1)


def most_polluted_token(case: Case, patch: int) -> int:
    """Raster index of the patch with the highest mean of the first pollutant at the start."""
    field = case.initial[0]
    tiles = field.reshape(field.shape[0] // patch, patch, field.shape[1] // patch, patch)
    known = np.isfinite(tiles).sum((1, 3))
    means = np.nansum(tiles, (1, 3)) / np.maximum(known, 1)
    return int(np.argmax(np.where(known == patch**2, means, -np.inf)))


def look(run: LoadedRun, case: Case, canvas: Canvas) -> Gaze | None:
    """Draw what the most polluted cell of a case attends to; None for a model without the elevation bias.

    Nor is there one where the bias differs for each pair of tokens (ridges, upwind).
    """
    attention = run.model.get_submodule("blocks.0.attn")
    if not isinstance(attention, ElevationAttention):
        return None
    patch = run.config.model.patch
    token = most_polluted_token(case, patch)
    rows = attention_row(attention, _input_of(attention, run, case.init_time), token).mean(1).cpu().numpy()
    shares = [_as_field(row * len(row), run) for row in rows]
    height_N = attention.height_bits.view(torch.float32).cpu().numpy()
    upper = height_N > height_N[token]
    scale, difference = concentration_scale(shares), difference_scale([shares[1] - shares[0]])
    row, column = (int(part * patch + patch // 2) for part in divmod(token, len(run.store.lon) // patch))
    lat, lon = float(run.store.lat[row]), float(run.store.lon[column])
    spot = canvas.place(lat, lon)
    assert spot is not None, "the token is on the grid"
    return Gaze(
        f"{abs(lat):.1f}°{'N' if lat >= 0 else 'S'} {abs(lon):.1f}°{'E' if lon >= 0 else 'W'}",
        spot,
        (
            _map(canvas, scale, shares[0], "Without the bias"),
            _map(canvas, scale, shares[1], "With the bias"),
            _map(canvas, difference, shares[1] - shares[0], "With minus without"),
        ),
        scale,
        difference,
        "lower" if run.config.model.elevation_bias == "uphill" else "higher",
        (f"{100 * rows[0][upper].sum():.0f} %", f"{100 * rows[1][upper].sum():.0f} %"),
        attention.heads,
    )


def _input_of(attention: ElevationAttention, run: LoadedRun, init_time: np.datetime64) -> Tensor:
    """(N, D) what the attention reads when the run forecasts from an initial time, at the first horizon."""
    seen: list[Tensor] = []
    hook = attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        forecast(run, init_time)
    finally:
        hook.remove()
    return seen[0][0]


def _as_field(values_N: FloatArray, run: LoadedRun) -> FloatArray:
    """(Y, X) each token's value in all its cells."""
    patch = run.config.model.patch
    tokens = values_N.reshape(-1, len(run.store.lon) // patch)
    return tokens.repeat(patch, axis=0).repeat(patch, axis=1)


def _map(canvas: Canvas, scale: Scale, field: FloatArray, title: str) -> Map:
    return Map(
        title, "", scale.layer(canvas, field), f"Map of the attention of the chosen cell: {title.lower()}."
    )
