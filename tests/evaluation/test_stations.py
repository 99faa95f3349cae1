"""Scores at stations."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from aqtopo.data import Store, open_store
from aqtopo.evaluation.evaluate import EvalOptions, evaluate
from aqtopo.evaluation.points import FORECASTS
from aqtopo.evaluation.results import read_table, write_results
from aqtopo.evaluation.stations import read_stations
from aqtopo.evaluation.tables import kept_values, stations_left_out, stratum_table
from aqtopo.inference.load import LoadedRun, load_run
from aqtopo.variables import HORIZONS_H, TARGET_VARIABLES

INITS = np.arange("2018-01-01", "2018-01-07", dtype="datetime64[D]").astype("datetime64[h]")
POSITIONS = {"0101A": (22.0, 84.0), "1141A": (33.7, 111.3), "edge": (30.0, 75.0), "far": (10.0, 100.0)}
"""The first two lie between cells; beside one is the masked western column, and one is off the grid."""


def observations(store: Store) -> pd.DataFrame:
    """PM2.5 and ozone of the store, at the stations and 3 ug m-3 higher; some hours are missing."""
    hours = store.times[(store.times >= np.datetime64("2018-01-01")) & (store.times.astype(int) % 3 == 0)]
    rows = []
    for name, (lat, lon) in POSITIONS.items():
        for hour in hours[:-6]:
            fields = store.read(int(store.locate(hour)))
            for pollutant in ("pm25", "o3"):
                value = by_hand(fields[store.channels.index(pollutant)], store, lat, lon) + 3.0
                rows.append((name, lat, lon, f"{hour}:00Z", pollutant, value))
    return pd.DataFrame(rows, columns=["id", "lat", "lon", "time", "pollutant", "value"])


def by_hand(field: np.ndarray, store: Store, lat: float, lon: float) -> float:
    """Bilinear interpolation on the regular grid."""
    y, x = (
        (lat - store.lat[0]) / (store.lat[1] - store.lat[0]),
        (lon - store.lon[0]) / (store.lon[1] - store.lon[0]),
    )
    i, j = int(np.clip(y, 0, 6)), int(np.clip(x, 0, 14))
    (a, b), (c, d) = field[i : i + 2, j : j + 2]
    y, x = y - i, x - j
    return float(a * (1 - y) * (1 - x) + b * (1 - y) * x + c * y * (1 - x) + d * y * x)


@pytest.fixture
def run(untrained_run: Path) -> LoadedRun:
    return load_run(untrained_run)


@pytest.fixture(scope="module")
def table(tiny_store: Path) -> pd.DataFrame:
    return observations(open_store(tiny_store))


@pytest.fixture
def csv(table: pd.DataFrame, tmp_path: Path) -> Path:
    path = tmp_path / "stations.csv"
    table.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("turn", [-360.0, 360.0])
def test_longitudes_are_compared_modulo_360(
    run: LoadedRun, csv: Path, table: pd.DataFrame, tmp_path: Path, turn: float
) -> None:
    table.assign(lon=table["lon"] + turn).to_csv(tmp_path / "turned.csv", index=False)
    turned = read_stations(tmp_path / "turned.csv", run.store, TARGET_VARIABLES)
    usual = read_stations(csv, run.store, TARGET_VARIABLES)
    xr.testing.assert_allclose(turned.observed, usual.observed)
    assert (turned.outside, turned.masked) == (usual.outside, usual.masked)


@pytest.mark.parametrize(
    ("pollutant", "factor", "changes"),
    [
        ("pm25", 1e-3, {"units": "mg/m3"}),
        ("pm25", 1e-9, {"unit": "kg m**-3"}),
        ("o3", 1.0, {"units": "µg/m³"}),
        ("o3", 1e-3, {}),
    ],
)
def test_values_are_converted_by_their_units(
    run: LoadedRun,
    csv: Path,
    table: pd.DataFrame,
    tmp_path: Path,
    pollutant: str,
    factor: float,
    changes: dict[str, str],
) -> None:
    ours = table["pollutant"] == pollutant
    others = table[~ours].assign(**dict.fromkeys(changes, "ug m-3"))
    changed = pd.concat([table[ours].assign(value=table["value"][ours] * factor, **changes), others])
    if not changes:  # units in the header count for all lines
        changed["value"] = changed["value"].where(ours, changed["value"] * factor)
        changed = changed.rename(columns={"value": "value (mg/m3)"})
    changed.to_csv(tmp_path / "units.csv", index=False)
    read = read_stations(tmp_path / "units.csv", run.store, TARGET_VARIABLES)
    usual = read_stations(csv, run.store, TARGET_VARIABLES)
    xr.testing.assert_allclose(read.observed, usual.observed, rtol=1e-9)


def test_units_of_other_pollutants_are_not_converted(
    run: LoadedRun, table: pd.DataFrame, tmp_path: Path
) -> None:
    more = table[:1].assign(pollutant="benzene", units="ppb")
    pd.concat([table.assign(units="ug/m3"), more]).to_csv(tmp_path / "more.csv", index=False)
    assert read_stations(tmp_path / "more.csv", run.store, TARGET_VARIABLES).ignored == ("benzene",)


def test_persistence_at_stations_equals_bilinear_interpolation_by_hand(run: LoadedRun, csv: Path) -> None:
    stations = read_stations(csv, run.store, TARGET_VARIABLES)
    done = evaluate(run, options=EvalOptions(stations=stations))
    scores = done.strata["station"].sel(forecast="persistence")
    assert scores["station"].values.tolist() == ["0101A", "1141A"]
    observed = stations.observed
    for name in scores["station"].values:
        for pollutant in ("pm25", "o3"):
            channel = run.store.channels.index(pollutant)
            start = [
                by_hand(run.store.read(int(run.store.locate(init)))[channel], run.store, *POSITIONS[name])
                for init in INITS
            ]
            for horizon in HORIZONS_H:
                valid = (INITS + np.timedelta64(horizon, "h")).astype("datetime64[ns]")
                truth = observed.sel(pollutant=pollutant, station=name).reindex(time=valid).values
                error = np.array(start) - truth
                here = scores.sel(station=name, pollutant=pollutant, horizon=horizon)
                assert here["count"] == np.isfinite(truth).sum()
                np.testing.assert_allclose(here["bias"], np.nanmean(error), rtol=1e-4, atol=1e-4)
                np.testing.assert_allclose(here["rmse"], np.sqrt(np.nanmean(error**2)), rtol=1e-5)
    assert not scores["count"].sel(pollutant="no2").any()


def test_stations_that_cannot_be_scored_are_named(run: LoadedRun, csv: Path) -> None:
    table = evaluate(
        run,
        options=EvalOptions(stations=read_stations(csv, run.store, ("pm25", "o3", *TARGET_VARIABLES[1:5]))),
    )
    sums = table.tables["stations"]
    assert sums.attrs["stations_outside_the_grid"] == ["far"]
    assert sums.attrs["stations_beside_masked_cells"] == ["edge"]


def test_negative_observations_are_kept_counted_and_reported(
    run: LoadedRun, table: pd.DataFrame, tmp_path: Path
) -> None:
    changed = table.copy()
    changed.loc[changed.query("id == '0101A' and pollutant == 'pm25'").index[:5], "value"] = -1.5
    changed.loc[changed.query("id == 'far'").index, "value"] = -1.5
    changed.to_csv(tmp_path / "stations.csv", index=False)
    stations = read_stations(tmp_path / "stations.csv", run.store, TARGET_VARIABLES)
    scores = evaluate(run, options=EvalOptions(stations=stations)).scores
    assert scores.attrs["kept_values"] == {"stations": {"pm25": 5}}
    assert "5 of pm25 in stations" in kept_values(scores)


def test_unscored_observations_are_listed(run: LoadedRun, csv: Path) -> None:
    done = evaluate(run, options=EvalOptions(stations=read_stations(csv, run.store, TARGET_VARIABLES)))
    said = stations_left_out(done)
    assert "far (beyond the grid)" in said
    assert "edge (beside a masked cell)" in said


def test_the_table_of_stations_has_only_pollutants_that_were_observed(run: LoadedRun, csv: Path) -> None:
    done = evaluate(run, options=EvalOptions(stations=read_stations(csv, run.store, TARGET_VARIABLES)))
    names = list(stratum_table(done, "station").columns[0].cells)
    assert set(names) == {"PM2.5", "ozone"}


def test_stations_are_written_as_a_table_and_as_sums(run: LoadedRun, csv: Path, tmp_path: Path) -> None:
    done = evaluate(run, options=EvalOptions(stations=read_stations(csv, run.store, TARGET_VARIABLES)))
    *_, listed = write_results(done, tmp_path)
    rows = pd.read_csv(listed, dtype={"station": str})
    assert len(rows) == 2 * 2 * 4 * len(FORECASTS)
    first = rows.query(
        "station == '0101A' and pollutant == 'pm25' and horizon == 24 and forecast == 'model'"
    ).iloc[0]
    expected = done.strata["station"].sel(station="0101A", pollutant="pm25", horizon=24).sel(forecast="model")
    assert first["rmse"] == pytest.approx(float(expected["rmse"]))
    assert read_table(tmp_path, "stations")["count"].sum() == done.tables["stations"]["count"].sum()


def test_other_pollutants_are_ignored_and_named(run: LoadedRun, table: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "more.csv"
    pd.concat([table, table[:3].assign(pollutant="aqi")]).to_csv(path, index=False)
    assert read_stations(path, run.store, TARGET_VARIABLES).ignored == ("aqi",)


def test_times_with_an_offset_are_brought_to_utc(run: LoadedRun, table: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "beijing.csv"
    table[:1].assign(time="2018-01-03T08:00+08:00").to_csv(path, index=False)
    times = read_stations(path, run.store, TARGET_VARIABLES).observed["time"].values
    np.testing.assert_array_equal(times, np.array(["2018-01-03T00"], "datetime64[ns]"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="lat"), "has no column lat"),
        (lambda t: t.assign(value="high"), "line 2, column value: 'high' is not a number"),
        (lambda t: t.assign(time="soon"), "line 2, column time: 'soon' is not a time"),
        (lambda t: t.assign(time="2018-01-03T00:30"), "not a whole hour"),
        (lambda t: t.assign(pollutant="aqi"), "its pollutants are aqi"),
        (lambda t: pd.concat([t, t[:1]]), "more than one value of pm25 at the station 0101A"),
        (lambda t: t.assign(lat=np.arange(len(t)) / 100), "several positions for the station 0101A"),
        (lambda t: t.assign(lat=-30.0), "none of the 1 stations"),
        (lambda t: t.assign(id=["", *t["id"][1:]]), "line 2 has no id"),
        (lambda t: t.assign(time=[*t["time"][:3], ""]), "line 5 has no time"),
        (lambda t: t.assign(lat=""), "line 2 has no lat"),
        (lambda t: t.assign(pollutant=["pm25", "", "pm25", "pm25"]), "line 3 has no pollutant"),
        (lambda t: t.assign(value=[-999.0, *t["value"][1:]]), "1 of 4 .*line 2: pm25 = -999 ug m-3 at"),
        (lambda t: t.assign(value=np.inf), "4 of 4 values that are impossible.*pm25 = inf"),
        (lambda t: t.assign(units="ppb"), r"line 2 has pm25 in unusable units: 'ppb' is a ratio of volumes"),
        (
            lambda t: t.assign(units="kg kg-1"),
            r"line 2 has pm25 in unusable units: 'kg kg-1' is a ratio of masses",
        ),
        (
            lambda t: t.assign(unit="K"),
            r"line 2 has pm25 in unusable units: 'K' .*cannot be converted to 'ug m-3'",
        ),
        (lambda t: t.assign(units=["ug/m3", "", "ug/m3", "ug/m3"]), "line 3 has no units"),
        (lambda t: t.assign(units="mg/m3"), r"4 of 4 values .* pm25 = \S+ mg/m3 at the station 0101A"),
        (lambda t: t.assign(pollutant="co", value=1.2), r"mean co of 1.2, outside 20 to .*ug m-3"),
    ],
)
def test_files_that_cannot_be_scored_are_refused(
    run: LoadedRun, table: pd.DataFrame, tmp_path: Path, change: object, message: str
) -> None:
    path = tmp_path / "bad.csv"
    assert callable(change)
    change(table.query("id == '0101A' and pollutant == 'pm25'")[:4]).to_csv(path, index=False)
    with pytest.raises(ValueError, match=message):
        read_stations(path, run.store, TARGET_VARIABLES)


@pytest.mark.parametrize("factor", [1e-3, 1e-9])
@pytest.mark.parametrize("name", TARGET_VARIABLES)
def test_values_in_other_units_with_the_same_label_are_refused(
    run: LoadedRun, table: pd.DataFrame, tmp_path: Path, name: str, factor: float
) -> None:
    lines = table.query("id == '0101A' and pollutant == 'pm25'")
    values = run.store.mean[name] * np.linspace(0.5, 2.0, len(lines))
    lines.assign(pollutant=name, value=values).to_csv(tmp_path / "right.csv", index=False)
    read_stations(tmp_path / "right.csv", run.store, TARGET_VARIABLES)
    lines.assign(pollutant=name, value=factor * values).to_csv(tmp_path / "wrong.csv", index=False)
    with pytest.raises(ValueError, match=rf"wrong.csv has a mean {name} of .*other units. Give their units"):
        read_stations(tmp_path / "wrong.csv", run.store, TARGET_VARIABLES)


def test_observations_of_other_days_are_refused(run: LoadedRun, table: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "later.csv"
    table[:1].assign(time="2019-06-01T00").to_csv(path, index=False)
    later = read_stations(path, run.store, TARGET_VARIABLES)
    with pytest.raises(ValueError, match=r"values from 2019-06-01T00 to 2019-06-01T00, and none at the"):
        evaluate(run, options=EvalOptions(stations=later))


def test_a_file_that_is_not_there_is_named(run: LoadedRun, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.csv cannot be read"):
        read_stations(tmp_path / "gone.csv", run.store, TARGET_VARIABLES)
