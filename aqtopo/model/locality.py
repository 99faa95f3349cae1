"""Heads that begin near, or near the place their air came from: a Gaussian folded into queries and keys.

-|x_j - o_i|^2 / (2 s^2) = (o_i x_j - |x_j|^2 / 2 - |o_i|^2 / 2) / s^2 is an inner product of five numbers of
the query and five of the key. So any attention has this bias that takes wider heads: nothing is N x N, and
no kernel is new. The five hold distances of thousands of km that all but cancel, hence float32 at least,
whatever the model computes in. Then scores are off by 1e-4 in the mean and 1e-3 at most where patches of half
a degree cover China (`tests/model/test_locality.py`); the error grows as (extent / s)^2.

Shapes: B batch, H heads, h heads with the bias, N tokens, E head width, C columns.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from aqtopo.model.bits import from_bits, to_bits
from aqtopo.model.terrain import Terrain
from aqtopo.model.way import Way

FloatArray = npt.NDArray[np.floating[Any]]

EARTH_RADIUS_KM = 6371.0

KM_A_DAY = 86.4
"""How far a wind of 1 m s-1 carries the air [km d-1]."""

LONGEST_TRAVEL = 1.0
"""First value of the last head's travel time [d]; the first head's is 0, the others' lie evenly between."""

NARROWEST, WIDENING, REACH = 0.75, 0.75, 2.25
"""First widths, in distances of neighbouring patches: the first head's, and how much wider the last head's is
where air is carried, and where not."""

MORE_COLUMNS = 16
"""By how much heads become wider: Triton's kernels take multiples of 16."""


class Attention(Protocol):
    """Attention over (B, H, N, any width), with a factor on q k; None for one over the root of the width."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, /, *, scale: float | None) -> Tensor:
        """The rows (B, H, N, width)."""


@dataclass(frozen=True, eq=False)
class Places:
    """Middles of the patches on the sphere, in axes fixed to the Earth, raster order.

    Attributes:
        km: (N, 3), less their mean: a smaller number loses fewer digits [km].
        axes: (2, N, 3) unit vectors to the east and north there.
        spacing_km: mean distance of a patch to its nearest neighbour; infinite if it has none.
    """

    km: FloatArray
    axes: FloatArray
    spacing_km: float

    @classmethod
    def of(cls, terrain: Terrain, patch: int) -> "Places":
        """Those of a grid's patches."""
        degrees = (terrain.latitude, terrain.longitude)
        middles = (np.radians(axis.astype(np.float64)).reshape(-1, patch).mean(1) for axis in degrees)
        latitude, longitude = (angle.ravel() for angle in np.meshgrid(*middles, indexing="ij"))
        sin, cos, sin_x, cos_x = np.sin(latitude), np.cos(latitude), np.sin(longitude), np.cos(longitude)
        km = EARTH_RADIUS_KM * np.stack([cos * cos_x, cos * sin_x, sin], -1)
        east = np.stack([-sin_x, cos_x, np.zeros_like(sin)], -1)
        north = np.stack([-sin * cos_x, -sin * sin_x, cos], -1)
        return cls(km - km.mean(0), np.stack([east, north]), _spacing_km(km))


def _spacing_km(places_km_N3: FloatArray) -> float:
    from scipy.spatial import KDTree  # takes half a second, and few models need it

    nearest_N1, _ = KDTree(places_km_N3).query(places_km_N3, k=[2])  # the first is the place itself
    return float(np.mean(nearest_N1))


class Locality(nn.Module):
    """A preference for what is near, or near the place from which the air has come: a Gaussian a head.

    score_ij gets -|x_j - (x_i - travel_h w_i)|^2 / (2 width_h^2), along the chord; w_i is the wind. The
    semi-Lagrangian schemes of weather models look up the air in the same place, the departure point
    (Staniforth and Cote 1991, Mon. Weather Rev. 119, 2206).

    Args:
        heads: h, how many have it: the first ones.
        free: how many further heads have not.
        places: of the tokens.
        carried: whether heads look upwind; otherwise around themselves.

    Attributes:
        log_reach: (h,) natural logarithm of the Gaussian's width, in distances of neighbouring patches.
        travel: (h,) how long the air was on its way [d]; None where nothing is carried.
    """

    place_bits: Tensor  # (N, 3) int32
    axes_bits: Tensor  # (2, N, 3) int32

    def __init__(self, heads: int, free: int, places: Places, *, carried: bool) -> None:
        super().__init__()
        self.free, self.spacing_km = free, places.spacing_km
        self.register_buffer("place_bits", to_bits(places.km), persistent=False)
        self.register_buffer("axes_bits", to_bits(places.axes), persistent=False)
        travel = torch.linspace(0.0, LONGEST_TRAVEL, heads)
        # Where the air was is the less certain, the longer ago; without wind, heads differ in their reach.
        self.log_reach = nn.Parameter(torch.log(NARROWEST + (WIDENING if carried else REACH) * travel))
        self.travel = nn.Parameter(travel) if carried else None

    def attend(
        self, attention: Attention, q: Tensor, k: Tensor, v: Tensor, rows_BN: Tensor | None, way: Way
    ) -> Tensor:
        """Attention (B, H, N, E) with the bias, by one without it; in float32 at least, given in q's dtype.

        Args:
            attention: gives each query its row, in whatever order.
            q: queries (B, H, N, E).
            k: keys, likewise.
            v: values, likewise.
            rows_BN: raster index of each query; None for raster order.
            way: where the keys are, and the wind.
        """
        E, dtype = q.shape[-1], precision(q.dtype)
        with _without_autocast(q.device):
            of_queries, of_keys = self.columns(rows_BN, way, dtype)
            wide_q, wide_k = _widened(q, of_queries * E**0.5), _widened(k, of_keys)
            wide_v = functional.pad(v.to(dtype), (0, MORE_COLUMNS))
            return attention(wide_q, wide_k, wide_v, scale=E**-0.5)[..., :E].to(q.dtype)

    def columns(self, rows_BN: Tensor | None, way: Way, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Factors of the bias: of queries (B or 1, H, N, C) and of keys (B or 1, 1, N, C)."""
        place_11N3 = from_bits(self.place_bits).to(dtype)[None, None]
        square_11N1 = place_11N3.square().sum(-1, keepdim=True)
        key_11NC = torch.cat([place_11N3, -0.5 * square_11N1, torch.ones_like(square_11N1)], -1)

        origin_BhN3 = self._origins(place_11N3, way)
        precision_h11 = (torch.exp(-2.0 * self.log_reach.to(dtype)) / self.spacing_km**2).view(-1, 1, 1)
        square_BhN1 = origin_BhN3.square().sum(-1, keepdim=True)
        query_BhNC = torch.cat([origin_BhN3, torch.ones_like(square_BhN1), -0.5 * square_BhN1], -1)
        # The heads that come last: (left, right, top, bottom, front, back) of the last three dimensions.
        query_BHNC = functional.pad(precision_h11 * query_BhNC, (0, 0, 0, 0, 0, self.free))
        return _looked_up(query_BHNC, rows_BN), _looked_up(key_11NC, way.stored)

    def _origins(self, place_11N3: Tensor, way: Way) -> Tensor:
        """(B or 1, h, N, 3) where the air at each token was, or the token itself [km]."""
        if self.travel is None:
            return place_11N3.expand(-1, len(self.log_reach), -1, -1)
        assert way.wind is not None, "the model gives every block the wind"
        dtype = place_11N3.dtype
        velocity_BN3 = torch.einsum("ban,anc->bnc", way.wind.to(dtype), from_bits(self.axes_bits).to(dtype))
        return place_11N3 - self.travel.to(dtype).view(-1, 1, 1) * (KM_A_DAY * velocity_BN3)[:, None]


def precision(dtype: torch.dtype) -> torch.dtype:
    """What attention with the bias is computed in, in a model of this dtype."""
    return torch.promote_types(dtype, torch.float32)


def attend(
    locality: Locality | None,
    attention: Attention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows_BN: Tensor | None,
    way: Way,
) -> Tensor:
    """`Locality.attend` where there is one; otherwise the attention as it is."""
    if locality is None:
        return attention(q, k, v, scale=None)
    return locality.attend(attention, q, k, v, rows_BN, way)


def _without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Keeps torch.autocast from rounding the places; the meta device has neither."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def _widened(x_BHNE: Tensor, columns: Tensor) -> Tensor:
    """(B, H, N, E + 16) in the columns' dtype: x, the columns, zeros."""
    given = columns.expand(*x_BHNE.shape[:-1], -1)
    return functional.pad(
        torch.cat([x_BHNE.to(columns.dtype), given], -1), (0, MORE_COLUMNS - columns.shape[-1])
    )


def _looked_up(x_BHNC: Tensor, index_BN: Tensor | None) -> Tensor:
    """(B, H, N, C) for the tokens with these raster indices."""
    if index_BN is None:
        return x_BHNC
    _, H, _, C = x_BHNC.shape
    return x_BHNC.expand(len(index_BN), -1, -1, -1).gather(
        2, index_BN.long()[:, None, :, None].expand(-1, H, -1, C)
    )
