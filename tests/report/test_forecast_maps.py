from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from aqtopo.config import RunConfig
from aqtopo.data import write_statistics, write_store
from aqtopo.inference.load import LoadedRun, load_run
from aqtopo.report.forecast_maps import load_case, most_polluted_time


@pytest.fixture
def run(untrained_run: Path) -> LoadedRun:
    return load_run(untrained_run)


def test_forecast_and_truth_stand_side_by_side_inside_the_mask(run: LoadedRun) -> None:
    case = load_case(run, np.datetime64("2018-01-03T00"))
    assert case.forecast.shape == case.truth.shape == (4, 6, 8, 16)
    outside = run.store.static["mask"] == 0
    for fields in (case.initial, case.forecast, case.truth):
        assert np.isnan(fields[..., outside]).all()
        assert np.isfinite(fields[..., ~outside]).all()
    stored = run.store.read(int(run.store.locate(np.array(np.datetime64("2018-01-04T00")))))
    pm25 = stored[run.store.channels.index("pm25")]
    np.testing.assert_array_equal(case.truth[1, 0][~outside], pm25[~outside])


def test_the_wind_is_that_of_each_hour_and_unknown_behind_the_end_of_the_data(run: LoadedRun) -> None:
    case = load_case(run, np.datetime64("2018-01-08T00"))  # the data end with January 10th
    assert case.wind.shape == (5, 2, 8, 16)
    stored = run.store.read(int(run.store.locate(np.array(np.datetime64("2018-01-10T00")))))
    np.testing.assert_array_equal(case.wind[3, 1], stored[run.store.channels.index("v")])
    assert np.isfinite(case.wind[:4]).all()
    assert np.isnan(case.wind[4]).all()


def test_the_most_polluted_midnight_is_chosen(
    tiny_dataset: xr.Dataset,
    tmp_path: Path,
    tiny_config: Callable[..., RunConfig],
    save_untrained: Callable[[RunConfig], Path],
) -> None:
    fields = tiny_dataset["fields"]
    fields.loc[{"channel": "pm25", "time": "2018-01-04T00"}] += 500.0
    fields.loc[{"channel": "pm25", "time": "2018-01-05T11"}] += 900.0  # higher, but not at 00 UTC
    fields.loc[{"channel": "pm25", "time": "2017-01-04T00"}] += 900.0  # not a test year
    store = tmp_path / "smog.zarr"
    write_store(tiny_dataset, store)
    write_statistics(store, [2016])
    run = load_run(save_untrained(tiny_config(data={"store": str(store)})))
    time, reason = most_polluted_time(run.store, run.config)
    assert time == np.datetime64("2018-01-04T00")
    assert reason == (
        "the initial time with the highest mean PM2.5 of 6 at 00 UTC in the test period, "
        "chosen without regard to the forecast's error"
    )


def test_a_start_without_any_truth_is_refused(run: LoadedRun) -> None:
    with pytest.raises(ValueError, match=r"--init 2018-01-10T23: .* has no truth at any horizon"):
        load_case(run, np.datetime64("2018-01-10T23"))


def test_a_start_outside_of_the_store_is_refused(run: LoadedRun) -> None:
    with pytest.raises(ValueError, match="2020-01-01T00"):
        load_case(run, np.datetime64("2020-01-01T00"))
