"""A batch of forecasts beside the truth, and the one rule about which points count.

Shapes: B initial time, K horizon, C pollutant, H x W grid; values in physical units, NaN where there is none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aqtopo.data.schema import Hours

FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]

MODEL = "model"
PERSISTENCE = "persistence"
CLIMATOLOGY = "climatology"
REFERENCES = (PERSISTENCE, CLIMATOLOGY)
FORECASTS = (MODEL, *REFERENCES)
"""What is always scored, in the order of every table: the model, then what it has to beat."""


@dataclass(frozen=True, eq=False)
class Cases:
    """Forecasts of some initial times, scored at the points at which every one of them has a value.

    Attributes:
        init_times: (B,) UTC.
        valid_times: (B, K) UTC.
        forecasts: (B, K, C, H, W) by name, the model first, climatology among them.
        truth: (B, K, C, H, W).
        scored: (B, K, C, H, W), the points that count.
        left_out: (B, K, C, H, W), points with a truth where some reference has no value.
    """

    init_times: Hours
    valid_times: Hours
    forecasts: Mapping[str, FloatArray]
    truth: FloatArray
    scored: BoolArray
    left_out: BoolArray


def make_cases(
    init_times: Hours,
    horizons_h: Sequence[int],
    pollutants: Sequence[str],
    forecasts: Mapping[str, FloatArray],
    truth: FloatArray,
    wanted: BoolArray,
) -> Cases:
    """Find the points that count.

    Args:
        init_times: (B,) UTC.
        horizons_h: K lead times [h].
        pollutants: C short names.
        forecasts: (B, K, C, H, W) in physical units, by name; `MODEL` must be there.
        truth: (B, K, C, H, W) in the same units.
        wanted: (B, K, C, H, W), true where a score is wanted; points without a finite truth are skipped.

    Raises:
        FloatingPointError: the model has no finite value at a point that has a truth: such a forecast is
            broken, and leaving the point out would flatter it.
    """
    assert truth.shape == wanted.shape, "one flag for each truth value"
    due = wanted & np.isfinite(truth)
    broken = due & ~np.isfinite(forecasts[MODEL])
    if broken.any():
        _, horizon, pollutant, _, _ = np.argwhere(broken)[0]
        raise FloatingPointError(
            f"the model's forecast is not finite at {int(broken.sum())} points where the truth is known, "
            f"{pollutants[pollutant]} at {horizons_h[horizon]} h among them; its weights have diverged: "
            "evaluate another tag, or lower the learning rate and train again"
        )
    scored = due.copy()
    for values in forecasts.values():
        scored &= np.isfinite(values)
    valid_times = init_times[:, None] + np.array(horizons_h, dtype="timedelta64[h]")
    return Cases(init_times, valid_times, forecasts, truth, scored, due & ~scored)
