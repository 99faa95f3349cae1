"""Forecasts of a run as CF datasets, and the truth in the same layout."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
import zarr

from aqtopo.config import RunConfig
from aqtopo.data import open_store, write_statistics, write_store
from aqtopo.data.loader import EvaluationLoader
from aqtopo.inference.forecast import forecast, parse_init_time, read_truth
from aqtopo.inference.load import LoadedRun, load_run
from aqtopo.variables import HORIZONS_H, TARGET_VARIABLES

INIT = np.datetime64("2018-01-03T00", "h")


@pytest.fixture
def run(untrained_run: Path) -> LoadedRun:
    return load_run(untrained_run)


@pytest.fixture
def damaged(tiny_store: Path, tmp_path: Path) -> Path:
    """A copy of the tiny store, which a test may damage."""
    shutil.copytree(tiny_store, tmp_path / "damaged.zarr")
    return tmp_path / "damaged.zarr"


def test_the_forecast_is_that_of_the_model_for_the_same_time(run: LoadedRun) -> None:
    batches = EvaluationLoader(run.store, run.config, "test", rank=0, world=1, batch=1)
    batch = next(batch for batch in batches if batch.times[0] == INIT)
    with torch.inference_mode():
        normalised = run.model(batch.inputs, batch.wind, batch.lead_hours, None)[0].numpy()
    dataset = forecast(run, INIT)
    for c, name in enumerate(TARGET_VARIABLES):
        expected = normalised[:, c] * run.store.std[name] + run.store.mean[name]
        np.testing.assert_allclose(dataset[name], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("channel", "change", "message"),
    [
        ("temp", lambda v: v - 273.15, "has temp = .*far outside 180 to 340 K"),
        ("psfc", lambda v: v / 100, "has psfc = .*far outside 30000 to 110000 Pa"),
        (
            "pm25",
            lambda v: v * 1e-9,
            r"has a mean pm25 of \S+, outside 0.04 to 5000 ug m-3: it is in other units",
        ),
        *(
            (name, lambda v: v / 1000, rf"has a mean {name} of .*: it is in other units")
            for name in TARGET_VARIABLES
        ),
        ("o3", lambda v: v * 0 - 999, "o3 = -999 in 128 of 128 values"),
        ("rh", lambda v: v * np.nan, "has no value of rh"),
        ("rh", lambda v: v / 100, "has a mean rh of 0.* outside 2 to 100 %: it is in other units"),
    ],
)
def test_an_hour_in_other_units_or_without_values_is_refused(
    run: LoadedRun, damaged: Path, channel: str, change: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    store = open_store(damaged)
    fields = zarr.open_array(damaged / "fields", mode="r+")
    hour, place = int(store.locate(INIT)), store.channels.index(channel)
    fields[hour, place] = change(np.asarray(fields[hour, place]))
    with pytest.raises(ValueError, match=rf"at 2018-01-03T00 (has )?{message}"):
        forecast(replace(run, store=open_store(damaged)), INIT)


@pytest.fixture
def run_with_history(tiny_config: Callable[..., RunConfig], save_untrained: Callable[..., Path]) -> LoadedRun:
    data = {"history_hours": [6, 30], "history_variables": ["pm25", "temp"]}
    return load_run(save_untrained(tiny_config(data=data)))


@pytest.mark.parametrize("hours", [6, 30])
def test_the_earlier_hours_of_a_run_with_history_are_checked_too(
    run_with_history: LoadedRun, damaged: Path, hours: int
) -> None:
    store, time = open_store(damaged), INIT - np.timedelta64(hours, "h")
    fields = zarr.open_array(damaged / "fields", mode="r+")
    place = store.channels.index("temp")
    fields[int(store.locate(time)), place] = np.asarray(fields[int(store.locate(time)), place]) - 273.15
    with pytest.raises(ValueError, match=rf"at {time} has temp = .*far outside 180 to 340 K"):
        forecast(replace(run_with_history, store=open_store(damaged)), INIT)


def test_an_earlier_hour_that_is_not_stored_is_named(run_with_history: LoadedRun) -> None:
    with pytest.raises(
        ValueError, match=r"no fields at 2016-12-31T18, 2016-12-30T18, which the run reads .*\[6, 30\]"
    ):
        forecast(run_with_history, np.datetime64("2017-01-02T00", "h") - np.timedelta64(24, "h"))


def test_a_channel_that_the_run_does_not_read_may_be_empty(
    tiny_config: Callable[..., RunConfig], save_untrained: Callable[..., Path], damaged: Path
) -> None:
    names = [name for name in tiny_config().data.variables if name != "rh"]
    run = load_run(save_untrained(tiny_config(data={"variables": names})))
    store = open_store(damaged)
    fields = zarr.open_array(damaged / "fields", mode="r+")
    fields[int(store.locate(INIT)), store.channels.index("rh")] = np.nan
    made = forecast(replace(run, store=open_store(damaged)), INIT)
    xr.testing.assert_equal(made, forecast(run, INIT))


def test_the_truth_has_the_layout_of_the_forecast_and_the_values_of_the_store(run: LoadedRun) -> None:
    made, truth = forecast(run, INIT), read_truth(run, INIT)
    assert set(truth.variables) == set(made.variables)
    for name, coordinate in made.coords.items():
        xr.testing.assert_identical(truth[name], coordinate)
    stored = xr.open_zarr(run.store.path, consolidated=False, chunks=None)["fields"]
    for name in TARGET_VARIABLES:
        assert truth[name].dims == made[name].dims
        expected = stored.sel(channel=name, time=truth["time"].values)
        np.testing.assert_array_equal(truth[name], expected)


def test_a_forecast_beyond_the_end_of_the_store_has_no_truth(run: LoadedRun) -> None:
    last = run.store.times[-1] - np.timedelta64(24, "h")
    assert forecast(run, last)["pm25"].notnull().all()
    missing = read_truth(run, last)["pm25"].isnull().all(("lat", "lon"))
    np.testing.assert_array_equal(missing, [False, False, True, True])


def test_global_attributes_lead_back_to_the_run(run: LoadedRun) -> None:
    attributes = forecast(run, INIT).attrs
    assert attributes["Conventions"] == "CF-1.11"
    assert attributes["title"] == "tiny: air-quality forecast from 2018-01-03T00 UTC"
    assert attributes["source"].endswith("started from: smooth waves made for tests")
    assert attributes["simulated"] == "yes"
    assert attributes["config_digest"] == run.config.digest
    assert attributes["tag"] == run.tag.name
    assert "made by aqtopo" in attributes["history"]
    assert attributes["inputs_filled"] == 0


@pytest.mark.parametrize(("year", "split"), [(2016, "train"), (2017, "validation"), (2018, "test")])
def test_the_split_of_the_initial_time_is_an_attribute(run: LoadedRun, year: int, split: str) -> None:
    assert forecast(run, np.datetime64(f"{year}-01-02T00", "h")).attrs["init_time_split"] == split


def test_negative_concentrations_are_kept_and_counted(run: LoadedRun) -> None:
    with torch.no_grad():
        weight, bias = run.model.head[-1].parameters()
        weight.zero_()
        bias.fill_(-100.0)  # a hundred standard deviations below the mean
    dataset = forecast(run, INIT)
    values = len(HORIZONS_H) * 8 * 16
    assert (dataset["pm25"] < 0).all()
    assert dataset["pm25"].attrs["comment"].endswith(f"not clipped: {values} of {values} values are negative")


def test_missing_inputs_are_counted(
    tiny_dataset: xr.Dataset,
    tmp_path: Path,
    tiny_config: Callable[..., RunConfig],
    save_untrained: Callable[[RunConfig], Path],
) -> None:
    tiny_dataset["fields"].loc[{"channel": "temp", "time": "2018-01-03T00", "lat": slice(25, None)}] = np.nan
    path = tmp_path / "holes.zarr"
    write_store(tiny_dataset, path)
    write_statistics(path, [2016])
    dataset = forecast(load_run(save_untrained(tiny_config(data={"store": str(path)}))), INIT)
    assert dataset.attrs["inputs_filled"] == 6 * 16
    assert dataset["o3"].notnull().all()


@pytest.mark.parametrize(
    ("wanted", "nearest"),
    [
        ("2015-06-01T00", "2016-01-01T00"),
        ("2018-01-11T05", "2018-01-10T23"),
        ("2016-12-30T00", "2017-01-01T00"),
        ("2030-01-01T00", "2018-01-10T23"),
    ],
)
def test_an_initial_time_that_is_not_stored_is_refused_with_the_nearest(
    run: LoadedRun, wanted: str, nearest: str
) -> None:
    with pytest.raises(ValueError, match=rf"{wanted}.*2016-01-01T00 to 2018-01-10T23.*nearest.*is {nearest}"):
        forecast(run, np.datetime64(wanted, "h"))


def test_weights_that_have_diverged_are_named(run: LoadedRun) -> None:
    with torch.no_grad():
        next(iter(run.model.head[-1].parameters())).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=run.tag.name):
        forecast(run, INIT)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2018-01-15T00", "2018-01-15T00"),
        ("2018-01-15", "2018-01-15T00"),
        ("2018-01-15 06:00", "2018-01-15T06"),
        ("2018-01-15T06:00:00Z", "2018-01-15T06"),
        ("2018-01-15T06+08:00", "2018-01-14T22"),
    ],
)
def test_initial_times_are_utc_unless_they_say_otherwise(text: str, expected: str) -> None:
    time = parse_init_time(text)
    assert time == np.datetime64(expected, "h")
    assert time.dtype == np.dtype("datetime64[h]")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("yesterday", "is not in ISO 8601"),
        ("2018-13-01T00", "is not in ISO 8601"),
        ("", "is not in ISO 8601"),
        ("NaT", "is not in ISO 8601"),
        ("2018-01-15T00:30", "not a whole hour.*2018-01-15T00"),
        ("2018-01-15T00+05:30", "not a whole hour"),
    ],
)
def test_initial_times_other_than_whole_hours_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_init_time(text)
