"""The ground the model stands on: where its cells are, and their heights in metres."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]

LOWEST_M, HIGHEST_M = -500.0, 9000.0
"""Heights [m] that the surface of the Earth can have, with room to spare."""


@dataclass(frozen=True, eq=False)
class Terrain:
    """Elevation of every cell of the grid, in metres: never standardised, the attention bias divides by 1 km.

    Attributes:
        elevation_m: (rows, columns), metres above sea level, finite everywhere (give the sea its 0).
        latitude: (rows,), degrees north, strictly ascending or strictly descending.
        longitude: (columns,), degrees east.

    Raises:
        ValueError: shapes do not fit, a height is not finite or not believable, the latitudes are unsorted.
    """

    elevation_m: FloatArray
    latitude: FloatArray
    longitude: FloatArray

    def __post_init__(self) -> None:
        if self.elevation_m.shape != (*self.latitude.shape, *self.longitude.shape) or self.latitude.ndim != 1:
            raise ValueError(
                "The terrain needs elevation of shape (rows, columns), one latitude a row and one longitude "
                f"a column, but got elevation {self.elevation_m.shape}, latitude {self.latitude.shape} and "
                f"longitude {self.longitude.shape}."
            )
        steps = np.diff(self.latitude)
        if not (np.all(steps > 0) or np.all(steps < 0)):
            raise ValueError(
                "The terrain's latitudes must be strictly ascending or strictly descending, but they run "
                f"{self.latitude[0]} ... {self.latitude[-1]} with steps from {steps.min()} to {steps.max()}."
            )
        self._check_heights()

    def _check_heights(self) -> None:
        bad = int(np.count_nonzero(~np.isfinite(self.elevation_m)))
        if bad:
            raise ValueError(
                f"The terrain's elevation is not finite in {bad} of {self.elevation_m.size} cells; fill them "
                "(0 m over the sea) before a model is built on it."
            )
        low, high = float(self.elevation_m.min()), float(self.elevation_m.max())
        if low < LOWEST_M or high > HIGHEST_M:
            raise ValueError(
                f"The terrain's elevation runs from {low:g} to {high:g}, outside of {LOWEST_M:g} to "
                f"{HIGHEST_M:g} m; give it in metres above sea level."
            )

    @classmethod
    def flat(cls, grid: tuple[int, int]) -> Self:
        """Sea level everywhere, from the south northwards: for counting parameters where there is no data."""
        rows, columns = grid
        latitude = np.linspace(-60.0, 60.0, rows, dtype=np.float32)
        longitude = np.linspace(-180.0, 180.0, columns, endpoint=False, dtype=np.float32)
        return cls(np.zeros((rows, columns), np.float32), latitude, longitude)

    @property
    def latitude_ascending(self) -> bool:
        """Whether row 0 is the southernmost (a single row counts as ascending)."""
        return bool(self.latitude[-1] >= self.latitude[0])

    def patch_means_m(self, patch: int) -> npt.NDArray[np.float32]:
        """Mean height [m] of each patch, (tokens,), in raster order.

        Raises:
            ValueError: the grid is not a multiple of the patch.
        """
        rows, columns = self.elevation_m.shape
        if rows % patch or columns % patch:
            raise ValueError(
                f"The grid of {rows} x {columns} cells cannot be cut into patches of {patch} x {patch}; "
                "choose model.patch so that it divides both."
            )
        tiles = self.elevation_m.reshape(rows // patch, patch, columns // patch, patch)
        means_m: npt.NDArray[np.float32] = tiles.mean((1, 3), dtype=np.float64).astype(np.float32).ravel()
        return means_m
