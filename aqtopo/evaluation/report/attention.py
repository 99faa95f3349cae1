"""What a few places attend to in block 0, with the bias and without it: rows of the softmax.

Only the rows of the chosen tokens are made, so that memory grows with the tokens and not with their square.

Shapes: H heads, N tokens, D width, E = D / H.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aqtopo.checkpoint import LoadedRun
from aqtopo.config import ModelConfig
from aqtopo.data.store import Store
from aqtopo.evaluation.forecast import forecast
from aqtopo.evaluation.report.canvas import Canvas, spelled_place
from aqtopo.evaluation.report.case import Case
from aqtopo.evaluation.report.maps import Scale, concentration_scale, difference_scale
from aqtopo.evaluation.report.panels import Map
from aqtopo.evaluation.report.places import Place, tokens_at
from aqtopo.model.attention import ElevationAttention, SelfAttention
from aqtopo.model.geometry import TokenGeometry, from_float32_bits

FloatArray = npt.NDArray[np.floating[Any]]
Attention = SelfAttention | ElevationAttention


@dataclass(frozen=True)
class Seen:
    """What an attention was given in a forecast.

    Attributes:
        tokens: (N, D) its input, raster order.
        geometry: map position of the tokens, and the wind there.
    """

    tokens: Tensor
    geometry: TokenGeometry


@dataclass(frozen=True)
class Gaze:
    """The attention of one token, drawn.

    Attributes:
        name: the place, in a word or two.
        place: where that is.
        spot: its drawing position, across and down.
        maps: without bias, with bias, and the difference.
        hindered: share of the attention that goes where `is_hindered`, without and with the bias, as text.
    """

    name: str
    place: str
    spot: tuple[float, float]
    maps: tuple[Map, Map, Map]
    hindered: tuple[str, str]


@dataclass(frozen=True)
class Gazes:
    """The attention of several tokens, on two scales that they share.

    Attributes:
        gazes: one a place, the most polluted first.
        heads: over how many heads it is the mean.
        scale: colours of attention, in shares of an even one.
        difference: colours of with minus without.
        where: what the bias hinders, as it stands behind "goes to".
    """

    gazes: tuple[Gaze, ...]
    heads: int
    scale: Scale
    difference: Scale
    where: str


def attention_row(attention: Attention, seen: Seen, token: int) -> Tensor:
    """(2, H, N) how much `token` attends to each token: without the bias, and with it.

    Args:
        attention: of block 0.
        seen: what it is given.
        token: raster index of the query.
    """
    with torch.no_grad():
        q_ND, k_ND, _ = attention.qkv(seen.tokens).float().chunk(3, -1)
        q_HE = q_ND[token].view(attention.heads, -1)
        k_NHE = k_ND.view(len(k_ND), attention.heads, -1)
        scores_HN = torch.einsum("he,nhe->hn", q_HE, k_NHE) / q_HE.shape[-1] ** 0.5
        return torch.stack([scores_HN, scores_HN + bias_row(attention, token, seen.geometry)]).softmax(-1)


def bias_row(attention: Attention, token: int, geometry: TokenGeometry) -> Tensor:
    """(H, N) what the bias adds to the scores of `token`, keys in raster order."""
    parts: list[Tensor] = []
    with torch.no_grad():
        if isinstance(attention, ElevationAttention):
            parts.append(-attention.alpha.float()[:, None] * _rises_km(attention, token))
        if attention.locality is not None:
            query_columns, key_columns = attention.locality.columns(None, geometry, torch.float32)
            parts.append(torch.einsum("hc,nc->hn", query_columns[0, :, token], key_columns[0, 0]))
    first, *others = parts
    return sum(others, first).expand(attention.heads, -1)


def _rises_km(attention: ElevationAttention, token: int) -> Tensor:
    """(N,) what the bias makes of heights [km], keys in raster order: how far they rise above the token."""
    height_N = from_float32_bits(attention.height_bits)
    return torch.clamp(height_N - height_N[token], min=0.0) / 1000.0


def look(run: LoadedRun, case: Case, canvas: Canvas, wanted: Sequence[Place] = ()) -> Gazes | None:
    """Draw what some places of a case attend to; None without a bias in block 0.

    Raises:
        ValueError: a place is wanted and not on the grid, or its name is taken, or block 0 has no bias.
    """
    attention = run.model.get_submodule("blocks.0.attn")
    assert isinstance(attention, Attention)
    if isinstance(attention, SelfAttention) and attention.locality is None:
        if wanted:
            raise ValueError(
                f"--place {wanted[0].name}: block 0 of {run.config.name} has no bias, so there is nothing to "
                "show of what a place attends to with it and without. Leave --place out."
            )
        return None
    seen = _seen_by(attention, run, case.init_time)
    tokens = tokens_at(run, case, canvas, wanted)
    rows = {token: attention_row(attention, seen, token).mean(1).cpu().numpy() for token in tokens.values()}
    shares = {token: _even_shares(pair, run) for token, pair in rows.items()}
    scale = concentration_scale([field for pair in shares.values() for field in pair])
    difference = difference_scale([biased - without for without, biased in shares.values()])

    def gaze(name: str, token: int) -> Gaze:
        lat, lon = _centre(run.store, token, run.config.model.patch)
        spot = canvas.place(lat, lon)
        assert spot is not None, "the token is on the grid"
        loses = is_hindered(attention, token, rows[token])
        without, biased = (f"{100 * row[loses].sum():.0f} %" for row in rows[token])
        maps = _maps(canvas, scale, difference, shares[token], name)
        return Gaze(name, spelled_place(lat, lon), spot, maps, (without, biased))

    return Gazes(
        tuple(gaze(name, token) for name, token in tokens.items()),
        attention.heads,
        scale,
        difference,
        _in_words(run.config.model),
    )


def _seen_by(attention: Attention, run: LoadedRun, init_time: np.datetime64) -> Seen:
    """What the attention is given when the run forecasts from an initial time, at the first horizon."""
    seen: list[tuple[Any, ...]] = []
    hook = attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    try:
        forecast(run, init_time)
    finally:
        hook.remove()
    x_BND, _, _, geometry = seen[0]
    assert geometry.raster_index is None, "block 0 reads its tokens in raster order"
    return Seen(x_BND[0], geometry)


def _even_shares(rows_2N: FloatArray, run: LoadedRun) -> tuple[FloatArray, FloatArray]:
    """(Y, X) without and with the bias, a value a token; 1 where all tokens got the same."""
    grid = -1, len(run.store.lon) // run.config.model.patch
    without, biased = rows_2N * rows_2N.shape[1]
    return without.reshape(grid), biased.reshape(grid)


def _centre(store: Store, token: int, patch: int) -> tuple[float, float]:
    """Latitude and longitude of the middle of a token's patch."""
    row, column = (part * patch for part in divmod(token, len(store.lon) // patch))
    return float(store.lat[row : row + patch].mean()), float(store.lon[column : column + patch].mean())


def is_hindered(attention: Attention, token: int, rows_2N: FloatArray) -> npt.NDArray[np.bool_]:
    """(N,) the ground that an elevation bias is for hindering; what loses by one whose zero is arbitrary.

    The ground is told by its height alone: training may have turned the strength's sign round.
    """
    hindered: npt.NDArray[np.bool_] = rows_2N[1] < rows_2N[0]
    if isinstance(attention, ElevationAttention) and attention.locality is None:
        hindered = (_rises_km(attention, token) > 0).cpu().numpy()
    return hindered


def _in_words(settings: ModelConfig) -> str:
    """What `is_hindered` finds, as it stands behind "goes to"."""
    if settings.local_bias:
        return "places that lose by it"
    return "lower ground" if settings.elevation_bias == "uphill" else "higher ground"


def _maps(
    canvas: Canvas, scale: Scale, difference: Scale, shares: tuple[FloatArray, FloatArray], name: str
) -> tuple[Map, Map, Map]:
    def map_of(title: str, colours: Scale, field: FloatArray) -> Map:
        alt = f"Map of the attention of the chosen place ({name}): {title.lower()}."
        return Map(title, "", colours.layer(canvas, field), alt)

    without, biased = shares
    return (
        map_of("Without the bias", scale, without),
        map_of("With the bias", scale, biased),
        map_of("With minus without", difference, biased - without),
    )
