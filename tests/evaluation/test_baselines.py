"""The references, against what xarray gives directly."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from aqtopo.data import Store, open_store, write_statistics, write_store
from aqtopo.evaluation.baselines import hourly_climatology, persistence
from aqtopo.variables import TARGET_VARIABLES


@pytest.fixture
def gappy_store(tiny_dataset: xr.Dataset, tmp_path: Path) -> Store:
    """The tiny store with missing hours, a cell without PM2.5 and another without it at 05 UTC."""
    fields = tiny_dataset["fields"]
    hour = tiny_dataset["time"].dt.hour
    fields.loc[{"channel": "pm25", "lat": fields.lat[0], "lon": fields.lon[0]}] = np.nan
    fields[{"lat": 1, "lon": 1}].loc[{"channel": "pm25", "time": hour == 5}] = np.nan
    fields.loc[{"channel": "o3", "time": slice("2016-01-03T07", "2016-01-04T02")}] = np.nan
    kept = ~tiny_dataset["time"].isin(
        np.array(["2016-01-02T03", "2016-01-05T00", "2016-01-05T01"], "datetime64[ns]")
    )
    path = tmp_path / "gappy.zarr"
    write_store(tiny_dataset.isel(time=kept.values), path)
    write_statistics(path, [2016])
    return open_store(path)


@pytest.mark.parametrize("years", [[2016], [2016, 2018]])
def test_climatology_equals_a_groupby_of_xarray(gappy_store: Store, years: list[int]) -> None:
    fields = xr.open_zarr(gappy_store.path, consolidated=False, chunks=None)["fields"]
    chosen = fields.sel(channel=list(TARGET_VARIABLES), time=fields["time"].dt.year.isin(years))
    expected = chosen.astype(np.float64).groupby("time.hour").mean()
    climatology = hourly_climatology(gappy_store, TARGET_VARIABLES, years)
    assert climatology.years == tuple(years)
    np.testing.assert_allclose(climatology.mean, expected.transpose("hour", ...), rtol=1e-6)


def test_cells_and_hours_without_data_have_no_climatology(gappy_store: Store) -> None:
    mean = hourly_climatology(gappy_store, ("pm25",), [2016]).mean[:, 0]
    assert np.isnan(mean[:, 0, 0]).all()
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(mean[:, 1, 1])), [5])
    assert np.isnan(mean).sum() == 24 + 1


def test_climatology_is_taken_at_the_valid_hour(tiny_store: Path) -> None:
    climatology = hourly_climatology(open_store(tiny_store), ("no2", "o3"), [2016])
    times = np.array(
        [["2018-06-01T05", "2018-12-31T23"], ["1969-12-31T23", "2018-06-02T05"]], "datetime64[h]"
    )
    fields = climatology.at(times)
    assert fields.shape == (2, 2, 2, 8, 16)
    np.testing.assert_array_equal(fields[0, 0], climatology.mean[5])
    np.testing.assert_array_equal(fields[0, 1], climatology.mean[23])
    np.testing.assert_array_equal(fields[1, 0], climatology.mean[23])
    np.testing.assert_array_equal(fields[0, 0], fields[1, 1])


def test_climatology_reports_every_hour_once(tiny_store: Path) -> None:
    told: list[tuple[str, int, int]] = []
    hourly_climatology(open_store(tiny_store), ("pm25",), [2016, 2017], lambda *facts: told.append(facts))
    assert told[-1] == ("hours of climatology", 480, 480)
    assert [done for _, done, _ in told] == list(range(0, 481, 24))


def test_climatology_over_years_that_the_store_lacks_is_refused(tiny_store: Path) -> None:
    with pytest.raises(ValueError, match="no hour in the training years 2013, 2014"):
        hourly_climatology(open_store(tiny_store), ("pm25",), [2013, 2014])


def test_persistence_repeats_the_initial_fields_at_every_horizon(tiny_store: Path) -> None:
    store = open_store(tiny_store)
    times = store.times[[30, 7]]
    forecast = persistence(store, ("co", "pm25"), times, 3)
    assert forecast.shape == (2, 3, 2, 8, 16)
    for horizon in range(3):
        np.testing.assert_array_equal(forecast[1, horizon, 0], store.read(7)[store.channels.index("co")])
        np.testing.assert_array_equal(forecast[0, horizon, 1], store.read(30)[store.channels.index("pm25")])
