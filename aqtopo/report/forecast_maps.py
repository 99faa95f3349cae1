"""Maps of one forecast and of the truth."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xarray as xr

from aqtopo.config import RunConfig
from aqtopo.data.samples import usable_times
from aqtopo.data.store import Store
from aqtopo.inference.forecast import forecast, read_hours, read_truth
from aqtopo.inference.load import LoadedRun
from aqtopo.inference.weather import PERFECT, Weather
from aqtopo.report.base_map import Canvas
from aqtopo.report.images import FloatArray, Scale, concentration_scale, difference_scale
from aqtopo.report.text import capitalised, plus, pretty_units, round_together, time_text
from aqtopo.variables import Variable

# Reading every hour of a year takes minutes on the full grid.
MAX_CANDIDATES = 366


@dataclass(frozen=True)
class ForecastCase:
    """Fields of one forecast in physical units, NaN outside the scored area.

    Attributes:
        init_time: initial time, UTC.
        reason: reason for the choice of the initial time.
        pollutants: descriptions of C pollutants.
        horizons_h: K lead times [h].
        initial: (C, H, W) fields at the initial time: the persistence forecast.
        forecast: (K, C, H, W).
        truth: (K, C, H, W).
        wind: (1 + K, 2, H, W) eastward and northward wind [m/s] of the data, at the initial time and at the
            valid times; NaN if the hour is not in the store.
    """

    init_time: np.datetime64
    reason: str
    pollutants: tuple[Variable, ...]
    horizons_h: tuple[int, ...]
    initial: FloatArray
    forecast: FloatArray
    truth: FloatArray
    wind: FloatArray


def most_polluted_time(store: Store, config: RunConfig) -> tuple[np.datetime64, str]:
    """Return the test time with the highest regional mean of the first target, and the reason as text.

    Candidates are the initial times at 00 UTC, or all if there are none, thinned to `MAX_CANDIDATES`.

    Raises:
        ValueError: no test time has all its horizons in the store.
    """
    data = config.data
    times = usable_times(store.times, data.test_years, data.horizons, history_hours=data.stored_before)
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
    at_midnight = "at 00 UTC " if len(midnights) else ""
    label = store.variables[config.data.targets[0]].long_name
    reason = (
        f"the initial time with the highest mean {label} of {len(candidates)} {at_midnight}in the test "
        "period, chosen without regard to the forecast's error"
    )
    return candidates[int(np.nanargmax(means))], reason


def load_case(run: LoadedRun, init_time: np.datetime64 | None = None) -> ForecastCase:
    """Forecast from an initial time, or from the most polluted one of the test period, and read the truth.

    Raises:
        ValueError: the store has no fields at the initial time, or none at the valid times.
    """
    if init_time is None:
        init_time, reason = most_polluted_time(run.store, run.config)
    else:
        reason = "chosen with --init"
    forecasts, truths = forecast(run, init_time, perfect_weather(run)), read_truth(run, init_time)
    pollutants, horizons = run.config.data.targets, run.config.data.horizons
    scored = run.store.static["mask"] > 0
    truth = _stacked(truths, pollutants, scored)
    if not np.isfinite(truth).any():
        raise ValueError(
            f"--init {init_time}: {run.store.path} has no truth at any horizon ({horizons} h) from there, so "
            f"the forecast cannot be verified. The store covers {run.store.times[0]} to "
            f"{run.store.times[-1]}."
        )
    times = init_time + np.array([0, *horizons], dtype="timedelta64[h]")
    (initial,) = read_hours(run.store, pollutants, times[:1])
    return ForecastCase(
        init_time,
        reason,
        tuple(run.store.variables[name] for name in pollutants),
        horizons,
        np.where(scored, initial, np.nan),
        _stacked(forecasts, pollutants, scored),
        truth,
        read_hours(run.store, ("u", "v"), times),
    )


def perfect_weather(run: LoadedRun) -> Weather | None:
    """Return the weather of the report's forecasts: perfect, if the run reads any."""
    return PERFECT if run.config.data.weather_at_horizons else None


def _stacked(dataset: xr.Dataset, pollutants: Sequence[str], scored: npt.NDArray[np.bool_]) -> FloatArray:
    """Return (K, C, H, W), NaN outside the scored area."""
    values = np.stack([dataset[name].values for name in pollutants], axis=1)
    return np.where(scored, values, np.nan)


@dataclass(frozen=True)
class MapImage:
    """One map: title, note, layer and text alternative."""

    title: str
    note: str
    layer: str
    alt: str


@dataclass(frozen=True)
class Verification:
    """Maps (forecast, truth, difference) and RMSE (model, persistence) of a pollutant at a horizon."""

    horizon_h: int
    valid_time: str
    maps: tuple[MapImage, MapImage, MapImage]
    errors: tuple[str, str]


@dataclass(frozen=True)
class PollutantMaps:
    """All maps of one pollutant, with the colours of concentrations and of forecast minus truth."""

    name: str
    label: str
    units: str
    scale: Scale
    difference: Scale
    initial: MapImage
    verifications: tuple[Verification, ...]


def draw_pollutant_maps(case: ForecastCase, canvas: Canvas) -> tuple[PollutantMaps, ...]:
    """Draw every map of a case."""
    return tuple(_draw(case, canvas, c) for c in range(len(case.pollutants)))


def _draw(case: ForecastCase, canvas: Canvas, c: int) -> PollutantMaps:
    variable = case.pollutants[c]
    # The scale does not depend on the forecast, so that extreme forecasts are visible.
    scale = concentration_scale([case.initial[c], *case.truth[:, c]])
    difference = difference_scale(list(case.forecast[:, c] - case.truth[:, c]))

    def picture(title: str, field: FloatArray, colours: Scale, alt: str) -> MapImage:
        note = _mean_note(field, variable.units, signed=colours is difference)
        return MapImage(title, note, colours.layer(canvas.north_up(field)), alt)

    def verify(horizon: int, forecast: FloatArray, truth: FloatArray) -> Verification:
        what = f"{variable.long_name}, {horizon} h ahead"
        error = f"Map of forecast minus truth for {what}: red too high, blue too low."
        model, persistence = round_together((_rmse(forecast, truth), _rmse(case.initial[c], truth)))
        return Verification(
            horizon,
            time_text(case.init_time + np.timedelta64(horizon, "h")),
            (
                picture(f"Forecast, +{horizon} h", forecast, scale, f"Map of the forecast of {what}."),
                picture("Truth", truth, scale, f"Map of the truth for {what}."),
                picture("Forecast minus truth", forecast - truth, difference, error),
            ),
            (model, persistence),
        )

    return PollutantMaps(
        variable.name,
        capitalised(variable.long_name),
        pretty_units(variable.units),
        scale,
        difference,
        picture(
            f"Initial time, {time_text(case.init_time)}",
            case.initial[c],
            scale,
            f"Map of {variable.long_name} at the initial time, with wind arrows.",
        ),
        tuple(map(verify, case.horizons_h, case.forecast[:, c], case.truth[:, c])),
    )


def _rmse(forecast: FloatArray, truth: FloatArray) -> float:
    """Return the root mean squared error over the cells where both are finite, NaN without any."""
    squares = np.square(forecast.astype(np.float64) - truth)
    known = squares[np.isfinite(squares)]
    return float(np.sqrt(known.mean())) if known.size else float("nan")


def _mean_note(field: FloatArray, units: str, signed: bool) -> str:
    known = field[np.isfinite(field)]
    if not known.size:
        return "no data"
    (mean,) = round_together([float(known.mean(dtype=np.float64))])
    return f"mean {plus(mean) if signed else mean} {pretty_units(units)}"
