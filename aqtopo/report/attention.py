"""Maps of the attention of a few places in block 0, with and without the bias.

Only the rows of the chosen tokens are computed, so that memory grows linearly with the tokens.

Shapes: H heads, N tokens, D width, E = D / H.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aqtopo.config import ModelConfig
from aqtopo.data.store import Store
from aqtopo.inference.forecast import forecast
from aqtopo.inference.load import LoadedRun
from aqtopo.model.attention import ElevationAttention, SelfAttention
from aqtopo.model.geometry import TokenGeometry, from_float32_bits
from aqtopo.report.base_map import CITIES, Canvas
from aqtopo.report.forecast_maps import ForecastCase, MapImage, perfect_weather
from aqtopo.report.images import FloatArray, Scale, concentration_scale, difference_scale
from aqtopo.report.text import place_text


@dataclass(frozen=True)
class Place:
    """A named point: degrees north and east."""

    name: str
    lat: float
    lon: float


def parse_place(text: str) -> Place:
    """Parse a place such as `Lanzhou=36.1,103.8` (`NAME=LAT,LON` in degrees).

    Raises:
        ValueError: the text has another form.
    """
    name, _, position = text.rpartition("=")
    try:
        lat, lon = map(float, position.split(","))
    except ValueError as error:
        raise ValueError(
            f"the place {text!r} is not of the form NAME=LAT,LON in degrees. Write for example "
            "Lanzhou=36.1,103.8."
        ) from error
    if not name:
        raise ValueError(f"the place {text!r} needs a name before the equals sign, as in Lanzhou=36.1,103.8.")
    return Place(name, lat, lon)


def tokens_at(
    run: LoadedRun, case: ForecastCase, canvas: Canvas, wanted: Sequence[Place] = ()
) -> dict[str, int]:
    """Return raster indices of tokens by the name of their place.

    Returns:
        The most polluted token at the initial time, the wanted places, and the cities inside the scored area.

    Raises:
        ValueError: a wanted place is not on the grid, or two places have the same name.
    """
    store, patch = run.store, run.config.model.patch
    found = {"Most polluted": most_polluted_token(case, patch)}
    for place in wanted:
        if place.name in found:
            raise ValueError(f"--place {place.name}: another place has this name. Choose a unique one.")
        if canvas.place(place.lat, place.lon) is None:
            raise ValueError(
                f"--place {place.name}={place.lat:g},{place.lon:g} is not on the grid of {store.path} "
                f"({store.lat.min():g} to {store.lat.max():g} N, {store.lon.min():g} to {store.lon.max():g} "
                "E). Choose a place on the grid."
            )
        found[place.name] = _token(*_cell(store, place), store, patch)
    for city in (Place(*city) for city in CITIES):
        cell = _cell(store, city)
        if canvas.place(city.lat, city.lon) is not None and store.static["mask"][cell] > 0:
            found.setdefault(city.name, _token(*cell, store, patch))
    return found


def most_polluted_token(case: ForecastCase, patch: int) -> int:
    """Return the raster index of the patch with the highest initial mean of the first pollutant."""
    field = case.initial[0]
    tiles = field.reshape(field.shape[0] // patch, patch, field.shape[1] // patch, patch)
    known = np.isfinite(tiles).sum((1, 3))
    means = np.nansum(tiles, (1, 3)) / np.maximum(known, 1)
    return int(np.argmax(np.where(known == patch**2, means, -np.inf)))


def _cell(store: Store, place: Place) -> tuple[int, int]:
    """Return row and column of the nearest cell."""
    return int(np.abs(store.lat - place.lat).argmin()), int(np.abs(store.lon - place.lon).argmin())


def _token(row: int, column: int, store: Store, patch: int) -> int:
    return row // patch * (len(store.lon) // patch) + column // patch


AttentionLayer = SelfAttention | ElevationAttention


@dataclass(frozen=True)
class AttentionInput:
    """Tokens (N, D) in raster order that an attention layer reads in a forecast, and their geometry."""

    tokens: Tensor
    geometry: TokenGeometry


@dataclass(frozen=True)
class AttentionMap:
    """Maps of the attention of the token at a place: without bias, with bias, difference.

    `spot` is the drawing position of the place. `weakened` is the share of attention to `weakened_tokens`,
    without and with the bias.
    """

    name: str
    place: str
    spot: tuple[float, float]
    maps: tuple[MapImage, MapImage, MapImage]
    weakened: tuple[str, str]


@dataclass(frozen=True)
class AttentionMaps:
    """Attention maps of several places, with common scales for attention and difference.

    They show the mean of `heads` heads, relative to equal attention to all tokens. `destination` describes
    `weakened_tokens`.
    """

    places: tuple[AttentionMap, ...]
    heads: int
    scale: Scale
    difference: Scale
    destination: str


def attention_row(attention: AttentionLayer, seen: AttentionInput, token: int) -> Tensor:
    """Return the attention (2, H, N) of a token to all tokens: without the bias, and with it."""
    with torch.no_grad():
        q_ND, k_ND, _ = attention.qkv(seen.tokens).float().chunk(3, -1)
        q_HE = q_ND[token].view(attention.heads, -1)
        k_NHE = k_ND.view(len(k_ND), attention.heads, -1)
        scores_HN = torch.einsum("he,nhe->hn", q_HE, k_NHE) / q_HE.shape[-1] ** 0.5
        return torch.stack([scores_HN, scores_HN + bias_row(attention, token, seen.geometry)]).softmax(-1)


def bias_row(attention: AttentionLayer, token: int, geometry: TokenGeometry) -> Tensor:
    """Return the bias (H, N) of the scores of `token`, keys in raster order."""
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
    """Return the rise (N,) from the token to each key [km], 0 for lower keys, in raster order."""
    height_N = from_float32_bits(attention.height_bits)
    return torch.clamp(height_N - height_N[token], min=0.0) / 1000.0


def draw_attention(
    run: LoadedRun, case: ForecastCase, canvas: Canvas, wanted: Sequence[Place] = ()
) -> AttentionMaps | None:
    """Draw the attention of some places; None without a bias in block 0.

    Raises:
        ValueError: a wanted place is not on the grid or its name is not unique, or block 0 has no bias.
    """
    attention = run.model.get_submodule("blocks.0.attn")
    assert isinstance(attention, AttentionLayer)
    if isinstance(attention, SelfAttention) and attention.locality is None:
        if wanted:
            raise ValueError(
                f"--place {wanted[0].name}: block 0 of {run.config.name} has no bias, so its "
                "attention cannot be compared with and without it. Leave --place out."
            )
        return None
    seen = _attention_input(attention, run, case.init_time)
    tokens = tokens_at(run, case, canvas, wanted)
    rows = {token: attention_row(attention, seen, token).mean(1).cpu().numpy() for token in tokens.values()}
    columns = len(run.store.lon) // run.config.model.patch
    # Relative to equal shares, (2, Y, X): without and with the bias.
    shares = {token: (pair * pair.shape[1]).reshape(2, -1, columns) for token, pair in rows.items()}
    scale = concentration_scale([field for pair in shares.values() for field in pair])
    difference = difference_scale([biased - without for without, biased in shares.values()])

    def shown(name: str, token: int) -> AttentionMap:
        lat, lon = _centre(run.store, token, run.config.model.patch)
        spot = canvas.place(lat, lon)
        assert spot is not None, "the token is on the grid"
        loses = weakened_tokens(attention, token, rows[token])
        without, biased = (f"{100 * row[loses].sum():.0f} %" for row in rows[token])

        def map_of(title: str, colours: Scale, field: FloatArray) -> MapImage:
            alt = f"Map of the attention of the chosen place ({name}): {title.lower()}."
            return MapImage(title, "", colours.layer(canvas.north_up(field)), alt)

        even, uneven = shares[token]
        maps = (
            map_of("Without the bias", scale, even),
            map_of("With the bias", scale, uneven),
            map_of("With minus without", difference, uneven - even),
        )
        return AttentionMap(name, place_text(lat, lon), spot, maps, (without, biased))

    return AttentionMaps(
        tuple(shown(name, token) for name, token in tokens.items()),
        attention.heads,
        scale,
        difference,
        _in_words(run.config.model),
    )


def _attention_input(attention: AttentionLayer, run: LoadedRun, init_time: np.datetime64) -> AttentionInput:
    """Return the input of the attention layer in a forecast from an initial time, at the first horizon."""
    seen: list[tuple[Any, ...]] = []
    hook = attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    try:
        forecast(run, init_time, perfect_weather(run))
    finally:
        hook.remove()
    x_BND, _, _, geometry = seen[0]
    assert geometry.raster_index is None, "block 0 reads its tokens in raster order"
    return AttentionInput(x_BND[0], geometry)


def _centre(store: Store, token: int, patch: int) -> tuple[float, float]:
    """Return latitude and longitude of the centre of a token's patch."""
    row, column = (part * patch for part in divmod(token, len(store.lon) // patch))
    return float(store.lat[row : row + patch].mean()), float(store.lon[column : column + patch].mean())


def weakened_tokens(attention: AttentionLayer, token: int, rows_2N: FloatArray) -> npt.NDArray[np.bool_]:
    """Return the tokens (N,) that the bias weakens.

    For an elevation bias alone these are the higher tokens, for any sign of alpha. The zero of other biases
    is arbitrary, so for those they are the tokens that lose attention.
    """
    weakened: npt.NDArray[np.bool_] = rows_2N[1] < rows_2N[0]
    if isinstance(attention, ElevationAttention) and attention.locality is None:
        weakened = (_rises_km(attention, token) > 0).cpu().numpy()
    return weakened


def _in_words(settings: ModelConfig) -> str:
    """Description of `weakened_tokens`."""
    if settings.local_bias:
        return "places that the bias weakens"
    return "lower ground" if settings.elevation_bias == "uphill" else "higher ground"
