"""Streaming error sums per forecast, horizon and pollutant, and the scores they give.

Only sums are kept, in float64, so years of forecasts pass through in constant memory, and the sums of two
parts of the data add up to those of the whole. Every cell counts the same: there is no area weight, as in the
loss.

Shapes: F forecast (model or reference), B initial time, K horizon, C pollutant, H x W grid.
The dimension is called `forecast`, not `method`, because xarray's `sel` has an argument of that name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]

MODEL = "model"
REFERENCES = ("persistence", "climatology")
FORECASTS = (MODEL, *REFERENCES)
"""What is scored, in the order of every table: the model, then what it has to beat."""

_OVER_CELLS = (0, 3, 4)


@dataclass
class ErrorSums:
    """Sums of forecast minus truth over the points at which every forecast has a value.

    Attributes:
        pollutants: short names, in the order of axis C.
        horizons_h: lead times [h], in the order of axis K.
        squared: (F, K, C) sum of squared errors, in the square of the pollutant's units.
        absolute: (F, K, C) sum of absolute errors.
        signed: (F, K, C) sum of errors, forecast minus truth.
        count: (K, C) points summed over, the same for every forecast.
        left_out: (K, C) points with a truth where a reference has no value: no forecast is scored there.
    """

    pollutants: tuple[str, ...]
    horizons_h: tuple[int, ...]
    squared: npt.NDArray[np.float64]
    absolute: npt.NDArray[np.float64]
    signed: npt.NDArray[np.float64]
    count: npt.NDArray[np.int64]
    left_out: npt.NDArray[np.int64]

    @classmethod
    def empty(cls, pollutants: Sequence[str], horizons_h: Sequence[int]) -> "ErrorSums":
        """Sums over nothing, for the given pollutants and lead times [h]."""
        per_pair = (len(horizons_h), len(pollutants))
        per_forecast = (len(FORECASTS), *per_pair)
        return cls(
            tuple(pollutants),
            tuple(horizons_h),
            squared=np.zeros(per_forecast),
            absolute=np.zeros(per_forecast),
            signed=np.zeros(per_forecast),
            count=np.zeros(per_pair, dtype=np.int64),
            left_out=np.zeros(per_pair, dtype=np.int64),
        )

    def add(self, forecasts: Mapping[str, FloatArray], truth: FloatArray, wanted: BoolArray) -> None:
        """Add a batch.

        Args:
            forecasts: (B, K, C, H, W) in physical units, one entry for each of FORECASTS.
            truth: (B, K, C, H, W) in the same units.
            wanted: (B, K, C, H, W), true where a score is wanted; points without a finite truth are skipped.

        Raises:
            FloatingPointError: the model has no finite value at a point that has a truth: such a forecast is
                broken, and leaving the point out would flatter it.
        """
        assert truth.shape == wanted.shape, "one flag for each truth value"
        due = wanted & np.isfinite(truth)
        self._refuse_broken(due & ~np.isfinite(forecasts[MODEL]))
        scored = due.copy()
        for reference in REFERENCES:
            scored &= np.isfinite(forecasts[reference])
        self.count += scored.sum(axis=_OVER_CELLS)
        self.left_out += (due & ~scored).sum(axis=_OVER_CELLS)
        for f, name in enumerate(FORECASTS):
            error = np.zeros(truth.shape)
            np.subtract(forecasts[name], truth, out=error, where=scored, dtype=np.float64)
            self.squared[f] += np.square(error).sum(axis=_OVER_CELLS)
            self.absolute[f] += np.abs(error).sum(axis=_OVER_CELLS)
            self.signed[f] += error.sum(axis=_OVER_CELLS)

    def _refuse_broken(self, broken: BoolArray) -> None:
        if not broken.any():
            return
        _, horizon, pollutant, _, _ = np.argwhere(broken)[0]
        raise FloatingPointError(
            f"the model's forecast is not finite at {int(broken.sum())} points where the truth is known, "
            f"{self.pollutants[pollutant]} at {self.horizons_h[horizon]} h among them; its weights have "
            "diverged: evaluate another tag, or lower the learning rate and train again"
        )

    def merge(self, other: "ErrorSums") -> "ErrorSums":
        """The sums of both parts; the parts must have the same pollutants and horizons."""
        assert (self.pollutants, self.horizons_h) == (other.pollutants, other.horizons_h), "alike sums"
        return ErrorSums(
            self.pollutants,
            self.horizons_h,
            squared=self.squared + other.squared,
            absolute=self.absolute + other.absolute,
            signed=self.signed + other.signed,
            count=self.count + other.count,
            left_out=self.left_out + other.left_out,
        )

    def scores(self) -> xr.Dataset:
        """Scores in physical units, NaN where nothing was counted.

        Returns:
            `rmse`, `mae` and `bias` (forecast, pollutant, horizon); `skill` (reference, pollutant, horizon),
            see `skill_against`; `count` and `left_out` (pollutant, horizon).
        """
        counted = np.where(self.count > 0, self.count, np.nan)
        by_forecast = ("forecast", "horizon", "pollutant")
        scores = xr.Dataset(
            {
                "rmse": (by_forecast, np.sqrt(self.squared / counted)),
                "mae": (by_forecast, self.absolute / counted),
                "bias": (by_forecast, self.signed / counted),
                "count": (by_forecast[1:], self.count),
                "left_out": (by_forecast[1:], self.left_out),
            },
            coords={
                "forecast": list(FORECASTS),
                "pollutant": list(self.pollutants),
                "horizon": ("horizon", list(self.horizons_h), {"units": "hours"}),
            },
        )
        scores["skill"] = skill_against(scores["rmse"])
        return scores.transpose("forecast", "reference", "pollutant", "horizon")


def skill_against(rmse: xr.DataArray) -> xr.DataArray:
    """Skill 1 - rmse / rmse of the reference: 1 is perfect, 0 as good as the reference, below 0 worse.

    Args:
        rmse: (forecast, ...) with the model and the references.

    Returns:
        (reference, ...), NaN where nothing was counted or the reference makes no error at all.
    """
    model = rmse.sel(forecast=MODEL, drop=True)
    reference = rmse.sel({"forecast": list(REFERENCES)}).rename(forecast="reference")
    return (1.0 - model / reference.where(reference > 0.0)).transpose("reference", ...)


@dataclass(frozen=True)
class Wins:
    """In how many pollutant-horizon pairs the model has the lower RMSE.

    Attributes:
        pairs: pairs in which anything was counted.
        over: by reference, the pairs in which the model is strictly better than it.
        over_all: pairs in which it is better than every reference.
    """

    pairs: int
    over: Mapping[str, int]
    over_all: int


def count_wins(scores: xr.Dataset) -> Wins:
    """Count the pairs in which the model beats the references, from what `ErrorSums.scores` gives."""
    rmse = scores["rmse"]
    better = rmse.sel(forecast=MODEL, drop=True) < rmse.sel(forecast=list(REFERENCES))
    return Wins(
        pairs=int((scores["count"] > 0).sum()),
        over={name: int(better.sel(forecast=name).sum()) for name in REFERENCES},
        over_all=int(better.all("forecast").sum()),
    )
