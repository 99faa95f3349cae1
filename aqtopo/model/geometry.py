"""Geometry of the model's grid: terrain, patch centres on the sphere, and the map position of each token.

Also the float32 buffers that keep heights and distances exact when the model is cast to 16 bits.

Shapes: B batch, N tokens, Y, X rows and columns of the grid.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

FloatArray = npt.NDArray[np.floating[Any]]

LOWEST_M, HIGHEST_M = -500.0, 9000.0
"""Range of elevations [m] on Earth, with a margin."""

EARTH_RADIUS_KM = 6371.0


def to_float32_bits(values: npt.NDArray[np.floating[Any]]) -> Tensor:
    """Return the int32 bit patterns of the values in float32, with the same shape.

    Casting a model to bfloat16 casts its float buffers too, which rounds a height of 4.37 km to the nearest
    32 m. Integer buffers are not cast.
    """
    return torch.as_tensor(np.ascontiguousarray(values, np.float32).view(np.int32))


def from_float32_bits(bits: Tensor) -> Tensor:
    """Return the float32 values of the bit patterns, as a view."""
    return bits.view(torch.float32)


@dataclass(frozen=True, eq=False)
class Terrain:
    """Elevation and coordinates of every grid cell. The elevation is in metres and is never standardised.

    Attributes:
        elevation_m: (rows, columns), metres above sea level, finite everywhere (0 over the sea).
        latitude: (rows,), degrees north, strictly ascending or strictly descending.
        longitude: (columns,), degrees east.

    Raises:
        ValueError: the shapes do not match, an elevation is not finite or outside of -500 m to 9000 m, or the
            latitudes are not sorted.
    """

    elevation_m: FloatArray
    latitude: FloatArray
    longitude: FloatArray

    def __post_init__(self) -> None:
        if self.elevation_m.shape != (*self.latitude.shape, *self.longitude.shape) or self.latitude.ndim != 1:
            raise ValueError(
                f"The terrain has elevation of shape {self.elevation_m.shape}, latitude "
                f"{self.latitude.shape} and longitude {self.longitude.shape}; it needs elevation (rows, "
                "columns), latitude (rows,) and longitude (columns,)."
            )
        steps = np.diff(self.latitude)
        if not (np.all(steps > 0) or np.all(steps < 0)):
            raise ValueError(
                f"The terrain's latitudes run from {self.latitude[0]} to {self.latitude[-1]} with steps from "
                f"{steps.min()} to {steps.max()}; they must be strictly ascending or strictly descending."
            )
        self._check_elevation()

    def _check_elevation(self) -> None:
        bad = int(np.count_nonzero(~np.isfinite(self.elevation_m)))
        if bad:
            raise ValueError(
                f"The terrain's elevation is not finite in {bad} of {self.elevation_m.size} cells; fill them "
                "before building a model (0 m over the sea)."
            )
        low, high = float(self.elevation_m.min()), float(self.elevation_m.max())
        if low < LOWEST_M or high > HIGHEST_M:
            raise ValueError(
                f"The terrain's elevation runs from {low:g} to {high:g} m; it must be from {LOWEST_M:g} to "
                f"{HIGHEST_M:g} m. Give it in metres above sea level."
            )

    @classmethod
    def flat(cls, grid: tuple[int, int]) -> Self:
        """Return terrain at sea level, latitudes ascending: for counting parameters without data."""
        rows, columns = grid
        latitude = np.linspace(-60.0, 60.0, rows, dtype=np.float32)
        longitude = np.linspace(-180.0, 180.0, columns, endpoint=False, dtype=np.float32)
        return cls(np.zeros((rows, columns), np.float32), latitude, longitude)

    @property
    def latitude_ascending(self) -> bool:
        """True if row 0 is the southernmost; a single row counts as ascending."""
        return bool(self.latitude[-1] >= self.latitude[0])

    def patch_means_m(self, patch: int) -> npt.NDArray[np.float32]:
        """Return the mean elevation [m] of each patch, (tokens,), in raster order.

        Raises:
            ValueError: the grid is not a multiple of the patch.
        """
        rows, columns = self.elevation_m.shape
        if rows % patch or columns % patch:
            raise ValueError(
                f"The grid of {rows} x {columns} cells cannot be divided into patches of {patch} x {patch}; "
                "choose a model.patch that divides both."
            )
        tiles = self.elevation_m.reshape(rows // patch, patch, columns // patch, patch)
        means_m: npt.NDArray[np.float32] = tiles.mean((1, 3), dtype=np.float64).astype(np.float32).ravel()
        return means_m


@dataclass(frozen=True, eq=False)
class PatchCentres:
    """Centres of the patches on the sphere, in Cartesian axes fixed to the Earth, in raster order.

    Attributes:
        km: (N, 3) positions [km] relative to their mean; smaller numbers lose fewer digits in float32.
        axes: (2, N, 3) local unit vectors to the east and to the north.
        spacing_km: mean distance of a patch to its nearest neighbour; infinite for a single patch.
    """

    km: FloatArray
    axes: FloatArray
    spacing_km: float

    @classmethod
    def from_terrain(cls, terrain: Terrain, patch: int) -> Self:
        """Compute the centres of patches of `patch` x `patch` cells."""
        degrees = (terrain.latitude, terrain.longitude)
        middles = (np.radians(axis.astype(np.float64)).reshape(-1, patch).mean(1) for axis in degrees)
        latitude, longitude = (angle.ravel() for angle in np.meshgrid(*middles, indexing="ij"))
        sin, cos, sin_x, cos_x = np.sin(latitude), np.cos(latitude), np.sin(longitude), np.cos(longitude)
        km = EARTH_RADIUS_KM * np.stack([cos * cos_x, cos * sin_x, sin], -1)
        east = np.stack([-sin_x, cos_x, np.zeros_like(sin)], -1)
        north = np.stack([-sin * cos_x, -sin * sin_x, cos], -1)
        return cls(km - km.mean(0), np.stack([east, north]), _mean_spacing_km(km))


def _mean_spacing_km(centres_km_N3: FloatArray) -> float:
    from scipy.spatial import KDTree  # the import takes half a second, and only the local bias needs it

    # The first neighbour of a point is the point itself.
    nearest_N1, _ = KDTree(centres_km_N3).query(centres_km_N3, k=[2])
    return float(np.mean(nearest_N1))


@dataclass(frozen=True)
class TokenGeometry:
    """Map position of each token, and the wind there.

    Attributes:
        raster_index: (B, N) raster index of each token; None for raster order.
        patch_wind: (B, 2, N) eastward and northward wind of each patch [m s-1], in raster order; None if no
            block uses it.
    """

    raster_index: Tensor | None = None
    patch_wind: Tensor | None = None


RASTER_ORDER = TokenGeometry()
"""Tokens in raster order, without wind."""


def patch_mean_wind(wind_B2YX: Tensor, patch: int) -> Tensor:
    """Return the mean wind of each patch of `patch` x `patch` cells, (B, 2, N), in raster order."""
    return functional.avg_pool2d(wind_B2YX, patch).flatten(2)
