"""The one forecast that the page shows as maps: which initial time, and what was forecast and what came.

Shapes: K horizon, C pollutant, H x W grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from aqtopo.config import RunConfig
from aqtopo.data.samples import usable_times
from aqtopo.data.schema import Hours
from aqtopo.data.store import Store
from aqtopo.inference.forecast import channel_indices, forecast, truth_for
from aqtopo.inference.load import LoadedRun
from aqtopo.variables import VARIABLES

FloatArray = npt.NDArray[np.floating[Any]]

# Reading every hour of a year for its mean would take minutes on the full grid.
MAX_CANDIDATES = 366


@dataclass(frozen=True)
class Case:
    """Fields of one forecast in physical units, NaN outside the scored area.

    Attributes:
        init_time: initial time, UTC.
        reason: why this one is shown, as a clause.
        pollutants: C short names.
        horizons_h: K lead times [h].
        initial: (C, H, W) fields at the initial time: the persistence forecast.
        forecast: (K, C, H, W).
        truth: (K, C, H, W).
        wind: (1 + K, 2, H, W) eastward and northward wind [m/s] of the data, at the initial time and at the
            valid times; NaN where the hour is not in the store.
    """

    init_time: np.datetime64
    reason: str
    pollutants: tuple[str, ...]
    horizons_h: tuple[int, ...]
    initial: FloatArray
    forecast: FloatArray
    truth: FloatArray
    wind: FloatArray


def most_polluted_time(store: Store, config: RunConfig) -> tuple[np.datetime64, str]:
    """The test time with the highest regional mean of the first target, and why it is shown.

    Only starts at 00 UTC compete, or all starts where there are none, thinned to `MAX_CANDIDATES`.

    Raises:
        ValueError: no test time has all its horizons in the store.
    """
    times = usable_times(store.times, config.data.test_years, config.data.horizons)
    if not len(times):
        years = ", ".join(str(year) for year in config.data.test_years)
        raise ValueError(
            f"{store.path} has no time in the test years {years} from which every horizon "
            f"({config.data.horizons} h) can be verified. Choose other data.test_years."
        )
    midnights = times[times.astype(int) % 24 == 0]
    candidates = midnights if len(midnights) else times
    candidates = candidates[:: -(-len(candidates) // MAX_CANDIDATES)]
    target = store.channels.index(config.data.targets[0])
    scored = store.static["mask"] > 0
    means = [
        float(np.nanmean(store.read(index)[target][scored])) if scored.any() else 0.0
        for index in store.locate(candidates).tolist()
    ]
    starts = f"{len(candidates)} starts {'at 00 UTC ' if len(midnights) else ''}in the test period"
    label = VARIABLES[config.data.targets[0]].long_name
    reason = f"of {starts} the one with the highest mean {label}, whatever the forecast made of it"
    return candidates[int(np.nanargmax(means))], reason


def load_case(run: LoadedRun, init_time: np.datetime64 | None = None) -> Case:
    """Forecast from one initial time and take the truth beside it.

    Args:
        run: a trained run.
        init_time: initial time, UTC; None for the most polluted start of the test period.

    Raises:
        ValueError: the store has no fields at the initial time, or none of the valid times.
    """
    if init_time is None:
        init_time, reason = most_polluted_time(run.store, run.config)
    else:
        reason = "chosen by hand"
    forecasts, truths = forecast(run, init_time), truth_for(run, init_time)
    pollutants, horizons = run.config.data.targets, run.config.data.horizons
    scored = run.store.static["mask"] > 0
    truth = _stacked(truths, pollutants, scored)
    if not np.isfinite(truth).any():
        raise ValueError(
            f"--init {init_time}: {run.store.path} has no truth at any horizon ({horizons} h) from there, so "
            f"there is nothing to compare the forecast with. It covers {run.store.times[0]} to "
            f"{run.store.times[-1]}."
        )
    fields = run.store.read(int(run.store.locate(np.array(init_time))))
    initial = fields[channel_indices(run.store, pollutants)]
    return Case(
        init_time,
        reason,
        pollutants,
        horizons,
        np.where(scored, initial, np.nan),
        _stacked(forecasts, pollutants, scored),
        truth,
        _wind_at(run.store, init_time + np.array([0, *horizons], dtype="timedelta64[h]")),
    )


def _wind_at(store: Store, times: Hours) -> FloatArray:
    """(T, 2, H, W) wind [m/s]; NaN for hours that are not in the store."""
    wind = np.full((len(times), 2, len(store.lat), len(store.lon)), np.nan, dtype=np.float32)
    channels = channel_indices(store, ("u", "v"))
    for place in np.flatnonzero(np.isin(times, store.times)):
        wind[place] = store.read(int(store.locate(times[place])))[channels]
    return wind


def _stacked(dataset: xr.Dataset, pollutants: Sequence[str], scored: npt.NDArray[np.bool_]) -> FloatArray:
    """(K, C, H, W), NaN where nothing is scored."""
    values = np.stack([dataset[name].values for name in pollutants], axis=1)
    return np.where(scored, values, np.nan)
