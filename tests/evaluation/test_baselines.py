from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from aqtopo.data import Store, open_store, write_statistics, write_store
from aqtopo.evaluation.baselines import annual_waves, fit_climatology, persistence
from aqtopo.variables import TARGET_VARIABLES


def test_persistence_repeats_the_initial_fields_at_every_horizon(tiny_store: Path) -> None:
    store = open_store(tiny_store)
    times = store.times[[30, 7]]
    forecast = persistence(store, ("co", "pm25"), times, 3)
    assert forecast.shape == (2, 3, 2, 8, 16)
    for horizon in range(3):
        np.testing.assert_array_equal(forecast[1, horizon, 0], store.read(7)[store.channels.index("co")])
        np.testing.assert_array_equal(forecast[0, horizon, 1], store.read(30)[store.channels.index("pm25")])


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
    climatology = fit_climatology(gappy_store, TARGET_VARIABLES, years)
    assert climatology.years == tuple(years)
    np.testing.assert_allclose(climatology.mean, expected.transpose("hour", ...), rtol=1e-6)


def test_cells_and_hours_without_data_have_no_climatology(gappy_store: Store) -> None:
    mean = fit_climatology(gappy_store, ("pm25",), [2016]).mean[:, 0]
    assert np.isnan(mean[:, 0, 0]).all()
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(mean[:, 1, 1])), [5])
    assert np.isnan(mean).sum() == 24 + 1


def test_climatology_is_taken_at_the_valid_hour(tiny_store: Path) -> None:
    climatology = fit_climatology(open_store(tiny_store), ("no2", "o3"), [2016])
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
    fit_climatology(open_store(tiny_store), ("pm25",), [2016, 2017], lambda *facts: told.append(facts))
    assert told[-1] == ("hours of climatology", 480, 480)
    assert [done for _, done, _ in told] == list(range(0, 481, 24))


def test_climatology_over_years_that_the_store_lacks_is_refused(tiny_store: Path) -> None:
    with pytest.raises(ValueError, match="no hour in the training years 2013, 2014"):
        fit_climatology(open_store(tiny_store), ("pm25",), [2013, 2014])


YEARS = [2016, 2017]


def cycle(times: np.ndarray) -> np.ndarray:
    """A known PM2.5 by hour of the day and time of the year, with two harmonics."""
    waves, hour = annual_waves(times, 2), times.astype(int) % 24
    known: np.ndarray = 60 + hour + 20 * waves[:, 0] - 9 * waves[:, 1] + hour * waves[:, 2] + 3 * waves[:, 3]
    return known


def cyclic_dataset(tiny_dataset: xr.Dataset, first_gap: str = "", last_gap: str = "") -> xr.Dataset:
    """Two hours a day of two years with that cycle on the tiny grid, a part of the calendar left out."""
    times = np.arange("2016-01-01", "2018-01-01", dtype="datetime64[h]")[::12]
    in_year = np.array([str(time)[5:10] for time in times])
    times = times[(in_year < first_gap) | (in_year >= last_gap)]
    fields = np.repeat(tiny_dataset["fields"].values[:1], times.size, axis=0)
    fields[:, tiny_dataset["channel"].values.tolist().index("pm25")] = cycle(times)[:, None, None]
    coords = {name: tiny_dataset[name] for name in ("channel", "lat", "lon")}
    coords["time"] = ("time", times.astype("datetime64[ns]"))
    return tiny_dataset.drop_vars(["fields", "time"]).assign(
        fields=xr.DataArray(fields, dims=tiny_dataset["fields"].dims, coords=coords)
    )


def stored(dataset: xr.Dataset, path: Path) -> Store:
    write_store(dataset, path)
    return open_store(path)


def test_an_annual_cycle_is_found_with_missing_days(tiny_dataset: xr.Dataset, tmp_path: Path) -> None:
    store = stored(cyclic_dataset(tiny_dataset, "06-01", "07-01"), tmp_path / "years.zarr")
    climatology = fit_climatology(store, ("pm25",), YEARS)
    assert climatology.harmonics == 2
    assert climatology.described.endswith("and 2 annual harmonic(s), fitted over 2016, 2017")
    times = np.array(["2018-02-03T00", "2018-06-15T12", "2019-11-30T12"], "datetime64[h]")
    np.testing.assert_allclose(climatology.at(times)[:, 0, 3, 5], cycle(times), rtol=1e-5)
    assert fit_climatology(store, ("pm25",), [2017]).harmonics == 1


@pytest.mark.parametrize(("end", "harmonics"), [("08-15", 0), ("07-10", 1)])
def test_a_missing_season_gets_no_harmonics(
    tiny_dataset: xr.Dataset, tmp_path: Path, end: str, harmonics: int
) -> None:
    store = stored(cyclic_dataset(tiny_dataset, "05-01", end), tmp_path / "part.zarr")
    assert fit_climatology(store, ("pm25",), YEARS).harmonics == harmonics


def test_a_missing_value_counts_as_the_mean_of_its_hour(tiny_dataset: xr.Dataset, tmp_path: Path) -> None:
    dataset = cyclic_dataset(tiny_dataset)
    pm25 = dataset["channel"].values.tolist().index("pm25")
    fields = dataset["fields"]
    fields[50:300, pm25, 2, 3] = np.nan
    hours = dataset["time"].dt.hour
    fields[:, pm25, 4, 5] = fields[:, pm25, 2, 3].groupby(hours).map(lambda part: part.fillna(part.mean()))
    climatology = fit_climatology(stored(dataset, tmp_path / "gaps.zarr"), ("pm25",), YEARS)
    values = climatology.at(dataset["time"].values)[:, 0]
    np.testing.assert_allclose(values[:, 2, 3], values[:, 4, 5], rtol=1e-4)
    assert np.ptp(values[::2, 2, 3]) > 20
