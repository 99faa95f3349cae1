"""Weather to come: perfect, from the store's own later hours, or from a weather forecast.

Shapes: B initial time, K horizon, A variable of the weather, H x W grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from aqtopo.config import DataConfig, RunConfig
from aqtopo.data.batch import Batch
from aqtopo.data.forecasts import OtherForecasts, open_forecasts
from aqtopo.data.schema import Hours
from aqtopo.data.statistics import Normalization
from aqtopo.data.store import Store
from aqtopo.refusal import raise_input_error

PERFECT: Literal["perfect"] = "perfect"


@dataclass(frozen=True, eq=False)
class WeatherForecast:
    """Weather from a file.

    Attributes:
        source: the files, for messages.
        forecasts: of `variables` at `horizons`.
        variables: A names.
        horizons: K lead times [h].
    """

    source: str
    forecasts: OtherForecasts
    variables: tuple[str, ...]
    horizons: tuple[int, ...]
    _last: dict[bytes, NDArray[np.float32]] = field(default_factory=dict, repr=False)
    """Weather of the last initial times: the model and a regression read the same."""

    @property
    def name(self) -> str:
        """Name in tables, files and pages."""
        return self.forecasts.name

    def check(self, init_times: Hours) -> None:
        """Check that there is weather from all initial times (B,).

        Raises:
            ValueError: there is none from one of them.
        """
        given = self.forecasts.init_times
        absent = init_times[~np.isin(init_times, given)]
        if absent.size:
            raise_input_error(
                self.source,
                f"has no weather from the initial time {absent[0]}, and lacks {absent.size} of "
                f"{init_times.size} initial times; it has {given.size}, from {given.min()} to {given.max()}",
                "Give the forecasts of all initial times, or choose other times with --init or --every",
            )

    def at(self, init_times: Hours) -> NDArray[np.float32]:
        """Return the weather (B, K, A, H, W) of initial times (B,), in the store's units.

        Raises:
            ValueError: an initial time or a value is missing, or a value is impossible.
        """
        self.check(init_times)
        key = init_times.astype("datetime64[h]").tobytes()
        if key in self._last:
            return self._last[key]
        values = self.forecasts.at(init_times)
        missing = ~np.isfinite(values)
        if missing.any():
            b, k, a, _, _ = np.argwhere(missing)[0]
            count, cells = np.count_nonzero(missing[b, k, a]), missing[b, k, a].size
            raise_input_error(
                self.source,
                f"has no value of {self.variables[a]} in {count} of {cells} cells {self.horizons[k]} h after "
                f"{init_times[b]}",
                "Give weather without gaps: it is never filled",
            )
        self._last.clear()
        self._last[key] = values
        return values


Weather = WeatherForecast | Literal["perfect"]
"""Source of the weather to come."""


def open_weather(
    paths: Path | Sequence[Path] | xr.Dataset, store: Store, data: DataConfig
) -> WeatherForecast:
    """Open weather forecasts for a run's variables and horizons.

    Args:
        paths: NetCDF or zarr with initial and lead times, one or several of different initial times; or an
            open dataset.
        store: its grid.
        data: of the run.

    Raises:
        ValueError: a file cannot be read, or variables, units, grid or lead times do not fit.
    """
    forecasts = open_forecasts(paths, store, data.weather_at_horizons, data.horizons)
    if forecasts.name == PERFECT:
        raise ValueError(f"the file name {forecasts.source} means perfect weather in the scores. Rename it.")
    return WeatherForecast(forecasts.source, forecasts, data.weather_at_horizons, data.horizons)


def check_weather(config: RunConfig, weather: Weather | None) -> None:
    """Check that weather is given if and only if a run reads it.

    Raises:
        ValueError: it is missing, or the run reads none.
    """
    names = ", ".join(config.data.weather_at_horizons)
    if names and weather is None:
        raise ValueError(
            f"the run {config.name} needs the weather to come ({names} at {_hours(config)} h). Give a "
            "weather forecast with --weather FILE, or --weather perfect for the store's own later hours, "
            "which no real forecast has. `aqtopo forecast RUN --needs --init TIME` lists the hours."
        )
    if weather is not None and not names:
        raise ValueError(f"the run {config.name} reads no weather to come. Leave --weather out.")


def reading_config(config: RunConfig, weather: Weather | None) -> RunConfig:
    """Return the configuration of the reader: without the weather if it is not the store's."""
    if not isinstance(weather, WeatherForecast):
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"weather_at_horizons": ()})})


def with_weather(batch: Batch, weather: Weather | None, normalization: Normalization) -> Batch:
    """Return a batch of `reading_config` with the weather; unchanged if that is the store's.

    Raises:
        ValueError: as `WeatherForecast.at`.
    """
    if not isinstance(weather, WeatherForecast):
        return batch
    values = normalization.normalize(weather.at(batch.times), weather.variables)
    return replace(batch, weather=torch.cat([torch.from_numpy(values), batch.weather], 2))


def weather_label(weather: Weather) -> str:
    """Return the words for the weather to come in tables, files and pages."""
    return f"weather forecast {weather.name}" if isinstance(weather, WeatherForecast) else "perfect weather"


@dataclass(frozen=True)
class Need:
    """Fields that a forecast needs.

    Attributes:
        time: UTC.
        lead_h: hours after the initial time; negative before it.
        variables: their names.
    """

    time: np.datetime64
    lead_h: int
    variables: tuple[str, ...]


def needs(store: Store, data: DataConfig, init_time: np.datetime64) -> tuple[list[Need], list[Need]]:
    """Return what a forecast from an initial time needs: hours of the store, and the weather to come."""

    def need(lead_h: int, variables: Sequence[str]) -> Need:
        return Need(init_time + np.timedelta64(lead_h, "h"), lead_h, tuple(dict.fromkeys(variables)))

    earlier = [
        need(-hours, [name for name, before in data.history if before == hours])
        for hours in reversed(data.history_hours)
    ]
    start = need(0, [*(name for name in data.variables if name in store.channels), "u", "v"])
    ahead = [need(hours, data.weather_at_horizons) for hours in data.horizons if data.weather_at_horizons]
    return [*earlier, start], ahead


def _hours(config: RunConfig) -> str:
    return ", ".join(map(str, config.data.horizons))
