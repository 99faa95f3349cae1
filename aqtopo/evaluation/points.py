"""Scored points of a batch, and the areas that scores are computed for.

Shapes: B initial time, K horizon, C pollutant, A area, H x W grid. Values are in physical units, NaN where
missing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from aqtopo.data.schema import Hours
from aqtopo.data.store import Store

FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]

MODEL = "model"
PERSISTENCE = "persistence"
CLIMATOLOGY = "climatology"
LINEAR = "linear"
LINEAR_SAME = "linear_same"
BASELINES = MappingProxyType(
    {
        PERSISTENCE: "the initial fields",
        CLIMATOLOGY: "the training years' mean in the cell at that hour of the day and time of the year",
        LINEAR: "a regression for each cell on its fields, the hour and the season",
        LINEAR_SAME: "the same regression on all fields that the run reads in the cell",
    }
)
"""Description of each baseline by name, in the order of every table, file and page."""

FORECASTS = (MODEL, *BASELINES)
"""Forecasts that are always scored: the model, then its baselines."""


@dataclass(frozen=True, eq=False)
class ScoredBatch:
    """Forecasts from some initial times, scored where all of them have a value.

    Attributes:
        init_times: (B,) UTC.
        valid_times: (B, K) UTC.
        forecasts: (B, K, C, H, W) by name, the model first, climatology among them.
        truth: (B, K, C, H, W).
        scored: (B, K, C, H, W), the scored points.
        left_out: (B, K, C, H, W), points with a truth where a baseline has no value.
    """

    init_times: Hours
    valid_times: Hours
    forecasts: Mapping[str, FloatArray]
    truth: FloatArray
    scored: BoolArray
    left_out: BoolArray


def make_scored_batch(
    init_times: Hours,
    horizons_h: Sequence[int],
    pollutants: Sequence[str],
    forecasts: Mapping[str, FloatArray],
    truth: FloatArray,
    wanted: BoolArray,
) -> ScoredBatch:
    """Select the points that are scored.

    Args:
        init_times: (B,) UTC.
        horizons_h: K lead times [h].
        pollutants: C short names.
        forecasts: (B, K, C, H, W) in physical units, by name, `MODEL` among them.
        truth: (B, K, C, H, W) in the same units.
        wanted: (B, K, C, H, W), true where a score is wanted; points without a finite truth are skipped.

    Raises:
        FloatingPointError: the model is not finite at a point that has a truth. Skipping the point would
            improve the score of a broken forecast.
    """
    assert truth.shape == wanted.shape, "one flag for each truth value"
    due = wanted & np.isfinite(truth)
    broken = due & ~np.isfinite(forecasts[MODEL])
    if broken.any():
        _, horizon, pollutant, _, _ = np.argwhere(broken)[0]
        raise FloatingPointError(
            f"the model's forecast is not finite at {int(broken.sum())} points with a known truth, "
            f"{pollutants[pollutant]} at {horizons_h[horizon]} h among them; its weights have diverged: "
            "evaluate another tag, or lower the learning rate and train again"
        )
    scored = due.copy()
    for values in forecasts.values():
        scored &= np.isfinite(values)
    valid = valid_times(init_times, horizons_h)
    return ScoredBatch(init_times, valid, forecasts, truth, scored, due & ~scored)


def valid_times(init_times: Hours, horizons_h: Sequence[int]) -> Hours:
    """Return the valid times (B, K) of forecasts from initial times (B,)."""
    times: Hours = init_times[:, None] + np.array(horizons_h, dtype="timedelta64[h]")
    return times


WHOLE = "all"
"""Name of the area that holds every cell."""

WEIGHTINGS = MappingProxyType(
    {
        "none": "none: every cell inside the mask has the same weight",
        "area": "area: a cell has the weight of its area, the cosine of its latitude",
    }
)
"""Description of each weighting of cells by name, for readers of the scores."""


@dataclass(frozen=True)
class Band:
    """Cells whose elevation is at least `lowest_m` and below `below_m` [m]."""

    name: str
    lowest_m: float
    below_m: float


BANDS = (
    Band("plains", -np.inf, 500.0),
    Band("slopes", 500.0, 1500.0),
    Band("mountains", 1500.0, 3000.0),
    Band("plateau", 3000.0, np.inf),
)
"""Elevation bands; the slope inside a cell does not matter.

The limits follow the three steps of China's relief (Zhao Songqiao, Physical Geography of China, 1986): the
eastern lowlands below 500 m, the middle step mostly at 1000 to 2000 m, the plateau of Qinghai and Tibet
above 3000 m.
"""


@dataclass(frozen=True)
class Region:
    """Cells whose centres lie in a box [degrees north, degrees east], its edges included."""

    name: str
    south: float
    north: float
    west: float
    east: float

    def __post_init__(self) -> None:
        if not (self.south < self.north and self.west < self.east):
            raise ValueError(
                f"the region {self.name} from {self.south:g} to {self.north:g} N and {self.west:g} to "
                f"{self.east:g} E is empty. Write NAME=SOUTH:NORTH,WEST:EAST, the lower number first."
            )


REGIONS = (
    Region("Beijing-Tianjin-Hebei", 37.0, 41.0, 114.0, 118.0),
    Region("Yangtze River Delta", 30.0, 33.0, 118.0, 122.0),
    Region("Pearl River Delta", 21.5, 24.0, 112.0, 115.5),
    Region("Sichuan Basin", 28.5, 31.5, 103.5, 107.0),
)
"""City clusters that studies of China's air compare (boxes of Li et al., PNAS 116, 422, 2019)."""


def parse_region(text: str) -> Region:
    """Parse `NAME=SOUTH:NORTH,WEST:EAST` in degrees, such as `Sichuan=28.5:31.5,103.5:107`.

    Raises:
        ValueError: the text has another form, or the box is empty.
    """
    name, equals, box = text.partition("=")
    try:
        (south, north), (west, east) = (map(float, side.split(":")) for side in box.split(","))
    except ValueError as error:
        raise ValueError(
            f"the region {text!r} is not of the form NAME=SOUTH:NORTH,WEST:EAST in degrees. "
            "Write for example Sichuan=28.5:31.5,103.5:107."
        ) from error
    if not name or not equals or name == WHOLE or name in {band.name for band in BANDS}:
        raise ValueError(f"the region {text!r} needs a unique name before the equals sign.")
    return Region(name, south, north, west, east)


@dataclass(frozen=True, eq=False)
class Areas:
    """Areas of one grid, the whole domain first. Areas may share cells.

    Attributes:
        names: of the A areas.
        kinds: `all`, `elevation` or `region`, for each area.
        cells: (A, H, W), true where a cell belongs to the area.
        cell_weights: (H, W), weights of the cells in the sums of errors.
        empty: bands and regions without a cell inside the mask; they have no scores.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    cells: NDArray[np.bool_]
    cell_weights: NDArray[np.float64]
    empty: tuple[str, ...] = ()

    @cached_property
    def _members(self) -> NDArray[np.float64]:
        """1 for the cells of each area, 0 for the others, (H W, A)."""
        return self.cells.reshape(len(self.names), -1).T.astype(np.float64)

    @cached_property
    def _weights(self) -> NDArray[np.float64]:
        """Weights of the cells of each area, 0 for the others, (H W, A)."""
        return self._members * self.cell_weights.reshape(-1, 1)

    def counts(self, flags: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the number (..., A) of true flags (..., H, W) in each area."""
        return _over_cells(flags, self._members)

    def weighted(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Return the weighted sums (..., A) of values (..., H, W) over the cells of each area."""
        return _over_cells(values, self._weights)


def _over_cells(values: NDArray[Any], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    flat = values.reshape(*values.shape[:-2], len(weights))
    sums: NDArray[np.float64] = flat.astype(np.float64, copy=False) @ weights
    return sums


def areas_of(store: Store, regions: Sequence[Region] | None = None, weighting: str = "none") -> Areas:
    """Return the whole domain, the elevation bands, and the requested regions or those of `REGIONS`.

    Args:
        store: its grid, mask and elevation.
        regions: boxes; None for `REGIONS`.
        weighting: one of `WEIGHTINGS`.

    Raises:
        ValueError: a requested region has no cell inside the mask, or two have the same name.
    """
    mask, elevation = store.static["mask"] > 0, store.static["elevation"]
    found: dict[str, tuple[str, NDArray[np.bool_]]] = {
        band.name: ("elevation", (elevation >= band.lowest_m) & (elevation < band.below_m)) for band in BANDS
    }
    for region in REGIONS if regions is None else regions:
        if region.name in found:
            raise ValueError(f"two regions are called {region.name}. Give each a unique name.")
        rows = (store.lat >= region.south) & (store.lat <= region.north)
        columns = (store.lon >= region.west) & (store.lon <= region.east)
        found[region.name] = ("region", rows[:, None] & columns)
        if regions is not None and not (found[region.name][1] & mask).any():
            (south, north), (west, east) = ((axis.min(), axis.max()) for axis in (store.lat, store.lon))
            raise ValueError(
                f"the region {region.name} contains no cell of {store.path} inside its mask; the grid covers "
                f"{south:g} to {north:g} N and {west:g} to {east:g} E. Choose a box that contains one."
            )
    empty = tuple(name for name, (_, cells) in found.items() if not (cells & mask).any())
    kept = {name: area for name, area in found.items() if name not in empty}
    whole = np.ones(mask.shape, dtype=np.bool_)
    return Areas(
        names=(WHOLE, *kept),
        kinds=(WHOLE, *(kind for kind, _ in kept.values())),
        cells=np.stack([whole, *(cells for _, cells in kept.values())]),
        cell_weights=_cell_weights(store, weighting),
        empty=empty,
    )


def _cell_weights(store: Store, weighting: str) -> NDArray[np.float64]:
    """Return the weights (H, W) of a weighting, whose mean inside the mask is 1."""
    weights = np.ones((store.lat.size, store.lon.size))
    if weighting == "none":
        return weights
    assert weighting == "area", weighting
    weights *= np.cos(np.deg2rad(store.lat))[:, None]
    normalised: NDArray[np.float64] = weights / weights[store.static["mask"] > 0].mean()
    return normalised
