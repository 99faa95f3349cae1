"""Forecasts from one initial time, and the truth, as CF datasets of the same layout."""

import importlib.metadata
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from aqtopo.config import RunConfig
from aqtopo.data.batch import BatchReader
from aqtopo.data.read_check import check_field
from aqtopo.data.schema import Hours
from aqtopo.data.store import Store
from aqtopo.inference.forecast_file import lead_time_dataset
from aqtopo.inference.load import LoadedRun, check_hours, predict
from aqtopo.inference.weather import (
    PERFECT,
    Weather,
    WeatherForecast,
    check_weather,
    needs,
    reading_config,
    weather_label,
    with_weather,
)
from aqtopo.refusal import raise_input_error

InitTime = str | datetime | np.datetime64
"""Initial time: ISO 8601 text such as `2018-01-15T00`, or a time; UTC unless it has an offset."""


def parse_init_time(given: InitTime) -> np.datetime64:
    """Return an initial time as a whole hour UTC.

    Raises:
        ValueError: the text is not a time, or not a whole hour.
    """
    text = str(given.astype("datetime64[us]") if isinstance(given, np.datetime64) else given)
    try:
        time = datetime.fromisoformat(text)
        if time.tzinfo is not None:
            time = time.astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"the initial time {text!r} is not in ISO 8601. Write it as 2018-01-15T00."
        ) from error
    hour = np.datetime64(time, "h")
    if hour != np.datetime64(time):
        raise ValueError(f"the initial time {text} is not a whole hour; fields are hourly. Use {hour}.")
    return hour


def channel_indices(store: Store, names: Sequence[str]) -> list[int]:
    """Return the indices of `names` along the channel axis of `Store.read`."""
    return [store.channels.index(name) for name in names]


def check_init_time(run: LoadedRun, init_time: np.datetime64) -> None:
    """Check that the store has fields at an initial time and at the earlier hours that the run reads.

    Raises:
        ValueError: it has none; the message names the nearest time.
    """
    check_hours(run)
    store = run.store
    times = store.times
    if not store.holds(np.asarray(init_time)):
        raise ValueError(
            f"the store {store.path} has no fields for the initial time {init_time} (it covers {times[0]} to "
            f"{times[-1]}, UTC). The nearest time it has is {times[np.argmin(np.abs(times - init_time))]}."
        )
    earlier = init_time - np.array(run.config.data.history_hours, dtype="timedelta64[h]")
    absent = earlier[~store.holds(earlier)]
    if absent.size:
        raise ValueError(
            f"the store {store.path} has no fields at {', '.join(map(str, absent))}, which the run reads for "
            f"a forecast from {init_time} (data.history_hours = {list(run.config.data.history_hours)}). "
            "Choose an initial time with these hours, or write a store that has them."
        )


def check_perfect_weather(run: LoadedRun, init_time: np.datetime64) -> None:
    """Check that the store has the weather at all valid times.

    Raises:
        ValueError: it lacks an hour, or has no usable values of a channel.
    """
    store, data = run.store, run.config.data
    times = init_time + np.array(data.horizons, dtype="timedelta64[h]")
    absent = times[~store.holds(times)]
    if absent.size:
        raise_input_error(
            f"The data store {store.path}",
            f"has no fields at {', '.join(map(str, absent))}, so no perfect weather for a forecast from "
            f"{init_time}",
            "Choose another initial time, or give a weather forecast with --weather FILE",
        )
    for time in times:
        check_fields(run, time, data.weather_at_horizons)


def check_inputs(run: LoadedRun, init_time: np.datetime64) -> None:
    """Check the fields of the initial time and of the earlier hours that the run reads.

    Raises:
        ValueError: as `check_fields`.
    """
    stored, _ = needs(run.store, run.config.data, init_time)
    for need in stored:
        check_fields(run, need.time, need.variables)


def check_fields(run: LoadedRun, time: np.datetime64, names: Sequence[str]) -> None:
    """Check that the fields `names` of an hour are data in the units of the run.

    Raises:
        ValueError: a channel has no value, an undeclared fill value, or values of another magnitude.
    """
    fields = run.store.read(int(run.store.locate(np.asarray(time))))
    for place, name in enumerate(run.store.channels):
        if name in names and not np.isfinite(check_field(run.store, time, name, fields[place])).any():
            raise_input_error(
                f"The data store {run.store.path} at {time}",
                f"has no value of {name}",
                "Choose an initial time with all variables",
            )


def forecast(run: LoadedRun, init_time: np.datetime64, weather: Weather | None = None) -> xr.Dataset:
    """Forecast all pollutants and horizons of a run from the fields of one hour.

    `weather` is the weather to come, if the run reads it: `open_weather`'s, or "perfect".

    Concentrations are not clipped: setting negative values to zero would bias the mean. The `comment` of each
    variable has the number of negative values. `init_time` is a whole hour UTC that is in the store; the
    truth may be missing.

    Returns:
        A CF-1.11 dataset, see `lead_time_dataset`.

    Raises:
        ValueError: the store has no fields at `init_time` or at the earlier hours that the run reads, a shard
            is damaged, or a field has no value, undeclared fill values, impossible magnitudes or wrong units;
            or the weather is not given or lacks an hour.
        FloatingPointError: the network returns values that are not finite.
    """
    check_weather(run.config, weather)
    check_init_time(run, init_time)
    check_inputs(run, init_time)
    if weather == PERFECT:
        check_perfect_weather(run, init_time)
    data = run.config.data
    values, filled = _model_values(run, init_time, weather)
    dataset = _dataset(run, init_time, values)
    for name in data.targets:
        _note_negatives(dataset[name])
    if weather is not None:
        dataset = dataset.assign_attrs(weather=weather_label(weather))
    if isinstance(weather, WeatherForecast):
        outside = weather.forecasts.outside(weather.at(np.array([init_time])))
        listed = [f"{number} of {name}" for name, number in outside.items() if number]
        dataset = dataset.assign_attrs(weather_outside_valid_range=", ".join(listed) or "none")
    return dataset.assign_attrs(
        title=f"{run.config.name}: air-quality forecast from {init_time} UTC",
        source=f"neural network (aqtopo), trained on and started from: {run.store.source}",
        init_time_split=_split_of(run.config, init_time),
        inputs_filled=filled,
        history=f"{datetime.now(UTC).isoformat(timespec='seconds')} made by aqtopo "
        f"{importlib.metadata.version('aqtopo')} from the run {run.config.name}, tag {run.tag_name}",
        run=run.config.name,
        tag=run.tag_name,
        config_digest=run.config.digest,
        simulated="yes" if run.store.simulated else "no",
        **({} if run.tag is None else {"weights_step": run.tag.step}),
    )


def forecasts(
    run: LoadedRun, init_times: Sequence[np.datetime64], weather: Weather | None = None
) -> xr.Dataset:
    """Forecast from several initial times, at least one.

    Returns:
        The datasets of `forecast` along `init_time`; `source` and other attributes that differ are left out.

    Raises:
        ValueError, FloatingPointError: as `forecast`.
    """
    each = [forecast(run, time, weather) for time in init_times]
    joined = xr.concat(each, "init_time", combine_attrs="drop_conflicts", coords="different", compat="equals")
    for name in run.config.data.targets:
        _note_negatives(joined[name])
    return joined.assign_attrs(
        title=f"{run.config.name}: air-quality forecasts from {len(each)} initial times, {init_times[0]} to "
        f"{init_times[-1]} UTC",
        inputs_filled=sum(one.attrs["inputs_filled"] for one in each),
        history=each[-1].attrs["history"],
    )


def _note_negatives(values: xr.DataArray) -> None:
    negative = int((values < 0).sum())
    values.attrs["comment"] = f"network output, not clipped: {negative} of {values.size} values are negative"


def read_truth(run: LoadedRun, init_time: np.datetime64) -> xr.Dataset:
    """Read the store's values at the valid times of a forecast, in the forecast's layout.

    Returns:
        As `forecast`; NaN where a value, or the whole hour, is missing.
    """
    data, store = run.config.data, run.store
    values = read_hours(store, data.targets, init_time + np.array(data.horizons, dtype="timedelta64[h]"))
    return _dataset(run, init_time, values).assign_attrs(
        title=f"{run.config.name}: truth for the forecast from {init_time} UTC", source=store.source
    )


def read_hours(store: Store, names: Sequence[str], times: Hours) -> NDArray[np.float32]:
    """Return the fields (T, C, H, W) of `names` at times (T,); NaN for hours that are not in the store."""
    channels = channel_indices(store, names)
    values = np.full((len(times), len(channels), len(store.lat), len(store.lon)), np.nan, dtype=np.float32)
    for place in np.flatnonzero(np.isin(times, store.times)):
        values[place] = store.read(int(store.locate(times[place])))[channels]
    return values


def _model_values(
    run: LoadedRun, init_time: np.datetime64, weather: Weather | None
) -> tuple[NDArray[np.float32], int]:
    """Return the network's output (K, C, H, W) in physical units, and the number of missing inputs."""
    leads = np.array([run.config.data.horizons], dtype=np.int64)
    batch = BatchReader(run.store, reading_config(run.config, weather)).batch(
        np.array([init_time]), leads, places=np.zeros(1, dtype=np.int64)
    )
    values = predict(run, with_weather(batch, weather, run.normalization))[0]
    if not np.isfinite(values).all():
        raise FloatingPointError(
            f"the forecast from {init_time} has values that are not finite; the weights of {run.tag_name} "
            "have diverged: choose another --tag, or lower the learning rate and train again"
        )
    return values, batch.filled


def _dataset(run: LoadedRun, init_time: np.datetime64, values: NDArray[np.float32]) -> xr.Dataset:
    return lead_time_dataset(
        values,
        init_time=init_time,
        pollutants=[run.store.variables[name] for name in run.config.data.targets],
        horizons_h=run.config.data.horizons,
        lat=run.store.lat,
        lon=run.store.lon,
    )


def _split_of(config: RunConfig, init_time: np.datetime64) -> str:
    """Return the split that contains the year of the initial time."""
    year = int(str(init_time)[:4])
    splits: dict[str, Sequence[int]] = {
        "train": config.data.train_years,
        "validation": config.data.validation_years,
        "test": config.data.test_years,
    }
    return next((name for name, years in splits.items() if year in years), "none")
