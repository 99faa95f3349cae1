"""Property tests of --stations: observations in another form score alike, harmful changes are refused."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, note
from hypothesis import strategies as st

from aqtopo.evaluation.evaluate import EvalOptions, evaluate
from aqtopo.evaluation.observations import COLUMNS
from aqtopo.evaluation.stations import read_stations
from aqtopo.inference.load import LoadedRun
from aqtopo.variables import TARGET_VARIABLES
from tests.data.test_outside_forms import UNITS, door_draws

Draw = Callable[[st.SearchStrategy[Any]], Any]
PLACES = {"0101A": (22.0, 84.0), "NA": (33.7, 111.3), "x y": (41.5, 120.25)}


@pytest.fixture(scope="module")
def run(load_untrained: Callable[..., LoadedRun]) -> LoadedRun:
    return load_untrained()


def observations() -> pd.DataFrame:
    """Return values of two pollutants at three stations, every six hours of the test days, as text."""
    rng = np.random.default_rng(0)
    hours = np.arange("2018-01-01", "2018-01-11", 6, dtype="M8[h]")
    rows = [
        (name, str(lat), str(lon), f"{hour}:00", pollutant, f"{rng.uniform(5.0, 150.0):.3f}")
        for name, (lat, lon) in PLACES.items()
        for hour in hours
        for pollutant in ("pm25", "o3")
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def write(table: pd.DataFrame, path: Path, draw: Draw | None = None) -> Path:
    """Write a table; `draw` draws separator, decimal mark, encoding, line ends and quotes."""
    mark, decimal = draw(st.sampled_from([",.", ";.", ";,", "\t.", "\t,"])) if draw else ",."
    encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])) if draw else "utf-8"
    end = draw(st.sampled_from(["\n", "\r\n"])) if draw else "\n"
    quotes = draw(st.sampled_from([0, 1])) if draw else 0
    note(f"{mark!r} {decimal} {encoding} {end!r} {quotes}")
    numbers = [name for name in table if str(name).lower().startswith(("lat", "lon", "value"))]
    written = table.copy()
    if decimal != ".":
        written[numbers] = table[numbers].apply(lambda column: column.str.replace(".", decimal, regex=False))
    written.to_csv(path, sep=mark, index=False, encoding=encoding, lineterminator=end, quoting=quotes)  # type: ignore[call-overload]
    return path


def scores(run: LoadedRun, path: Path) -> xr.DataArray:
    stations = read_stations(path, run.store, TARGET_VARIABLES)
    found = evaluate(run, options=EvalOptions(stations=stations)).strata["station"]
    return found[["rmse", "mae", "bias"]].to_dataarray()


# Harmless changes.


def rows_in_another_order(table: pd.DataFrame, draw: Draw) -> pd.DataFrame:
    return table.sample(frac=1, random_state=draw(st.integers(0, 99)))


def columns_in_another_order(table: pd.DataFrame, draw: Draw) -> pd.DataFrame:
    return table[draw(st.permutations(list(table.columns)))]


def more_columns_and_rows(table: pd.DataFrame, draw: Draw) -> pd.DataFrame:
    missing = draw(st.sampled_from(["", "NA", "NaN", "null", "None", "n/a"]))
    more = table[:3].assign(pollutant="benzene")
    empty = table[-3:].assign(id="empty", value=missing)
    return pd.concat([table, more, empty]).assign(remark="a b")


def other_longitudes(table: pd.DataFrame, draw: Draw) -> pd.DataFrame:
    turn = draw(st.sampled_from([-360.0, 360.0]))
    return table.assign(lon=(table["lon"].astype(float) + turn).astype(str))


def other_times(table: pd.DataFrame, draw: Draw) -> pd.DataFrame:
    times = pd.to_datetime(table["time"])
    kind = draw(st.sampled_from(["blank", "Z", "+08:00", "-05:30", "24:00", "seconds"]))
    if kind == "24:00":
        before = (times - pd.Timedelta(days=1)).dt.strftime("%Y-%m-%d 24:00")
        return table.assign(time=before.where(times.dt.hour == 0, times.dt.strftime("%Y-%m-%d %H:%M")))
    hours = {"+08:00": 8.0, "-05:30": -5.5}.get(kind, 0.0)
    form = {"blank": "%Y-%m-%d %H:%M", "seconds": "%Y-%m-%dT%H:%M:%S"}.get(kind, f"%Y-%m-%dT%H:%M{kind}")
    return table.assign(time=(times + pd.Timedelta(hours=hours)).dt.strftime(form))


def other_names(table: pd.DataFrame, draw: Draw) -> pd.DataFrame:
    changed = {
        "pm25": draw(st.sampled_from(["PM2.5", "PM2_5", "pm25"])),
        "o3": draw(st.sampled_from(["O3", "o3"])),
    }
    case = draw(st.sampled_from([str.upper, str.title, str.lower]))
    columns = {name: case(name) for name in table if str(name).isalpha()}  # not of units in brackets
    return table.replace({"pollutant": changed}).rename(columns=columns)


def units_in_a_column(table: pd.DataFrame, draw: Draw) -> pd.DataFrame:
    known = UNITS["ug m-3"]
    chosen = {name: draw(st.sampled_from(known)) for name in table["pollutant"].unique()}
    numbers = pd.to_numeric(table["value"], errors="coerce")
    changed = (numbers * table["pollutant"].map({n: factor for n, (_, factor, _) in chosen.items()})).map(
        "{:.12g}".format
    )
    units = table["pollutant"].map({n: text for n, (text, _, _) in chosen.items()})
    name = draw(st.sampled_from(["units", "unit"]))
    return table.assign(**{"value": changed.where(numbers.notna(), table["value"]), name: units})


def units_in_the_header(table: pd.DataFrame, draw: Draw) -> pd.DataFrame:
    if {"units", "unit"} & set(table.columns):
        return table
    text, factor, _ = draw(st.sampled_from(UNITS["ug m-3"]))
    numbers = pd.to_numeric(table["value"], errors="coerce")
    changed = (numbers * factor).map("{:.12g}".format).where(numbers.notna(), table["value"])
    form = draw(st.sampled_from(["value [{}]", "value ({})", "value[{}]"]))
    return table.assign(value=changed).rename(columns={"value": form.format(text)})


FIRST = [rows_in_another_order, more_columns_and_rows, other_longitudes, other_times]
LAST = [units_in_a_column, units_in_the_header, columns_in_another_order, other_names]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@door_draws
@given(
    data=st.data(),
    changes=st.lists(st.sampled_from(FIRST), unique=True),
    last=st.lists(st.sampled_from(LAST), unique=True),
)
def test_observations_in_another_form_score_alike(
    run: LoadedRun, data: Any, changes: list[Any], last: list[Any]
) -> None:
    table = observations()
    for change in [*changes, *sorted(last, key=LAST.index)]:
        note(change.__name__)
        table = change(table, data.draw)
    with tempfile.TemporaryDirectory() as folder:
        expected = scores(run, write(observations(), Path(folder, "usual.csv")))
        found = scores(run, write(table, Path(folder, "other.csv"), data.draw))
    xr.testing.assert_allclose(found, expected.sel(station=found["station"]), rtol=1e-5, atol=1e-4)
    assert found.sizes == expected.sizes


# Harmful changes of a row (its line in the file is two more). Each returns what the message must name.


def changed(table: pd.DataFrame, row: int, **entries: str) -> pd.DataFrame:
    for name, entry in entries.items():
        table.loc[row, name] = entry
    return table


def no_measurement(table: pd.DataFrame, row: int, draw: Draw) -> tuple[pd.DataFrame, str]:
    value = draw(st.sampled_from(["-999", "-9999", "-99.9", "1e20", "99999"]))
    return changed(table, row, value=value), f"1 of .* values that are impossible.*line {row + 2}: "


def no_number(table: pd.DataFrame, row: int, draw: Draw) -> tuple[pd.DataFrame, str]:
    column = draw(st.sampled_from(["lat", "lon", "value"]))
    entry = draw(st.sampled_from(["ND", "<5", "--", "1.2.3", "12 5"]))
    return changed(
        table, row, **{column: entry}
    ), f"line {row + 2}, column {column}: {entry!r} is not a number"


def no_time(table: pd.DataFrame, row: int, draw: Draw) -> tuple[pd.DataFrame, str]:
    entry = draw(st.sampled_from(["2018-02-30T00", "yesterday", "01/02/2018 00:00", "2018-01-01T25"]))
    return changed(table, row, time=entry), f"line {row + 2}, column time: {entry!r} is not a time"


def no_whole_hour(table: pd.DataFrame, row: int, _: Draw) -> tuple[pd.DataFrame, str]:
    return changed(table, row, time="2018-01-01T00:30"), f"line {row + 2} has the time .*not a whole hour"


def entry_lost(table: pd.DataFrame, row: int, draw: Draw) -> tuple[pd.DataFrame, str]:
    column = draw(st.sampled_from(COLUMNS[:-1]))
    return changed(table, row, **{column: ""}), f"line {row + 2} has no {column}"


def column_lost(table: pd.DataFrame, _: int, draw: Draw) -> tuple[pd.DataFrame, str]:
    column = draw(st.sampled_from(COLUMNS))
    return table.drop(columns=column), f"it has no column {column}"


def column_twice(table: pd.DataFrame, _: int, draw: Draw) -> tuple[pd.DataFrame, str]:
    column = draw(st.sampled_from(COLUMNS))
    doubled = pd.concat([table, table[[column]]], axis=1)
    return doubled, f"its first line has more than one {column}"


def units_twice(table: pd.DataFrame, _: int, __: Draw) -> tuple[pd.DataFrame, str]:
    table = table.assign(units="ug/m3").rename(columns={"value": "value [ug/m3]"})
    return table, "its first line has more than one units"


def value_twice(table: pd.DataFrame, row: int, _: Draw) -> tuple[pd.DataFrame, str]:
    return pd.concat([table, table[row : row + 1]]), "more than one value of"


def station_moved(table: pd.DataFrame, row: int, _: Draw) -> tuple[pd.DataFrame, str]:
    return changed(table, row, lat="25.5"), "several positions for the station"


def units_without_meaning(table: pd.DataFrame, row: int, draw: Draw) -> tuple[pd.DataFrame, str]:
    units = draw(st.sampled_from(["ppb", "ppm", "kg kg-1", "K", "furlong", "mol/mol"]))
    table["units"] = "ug/m3"
    return changed(table, row, units=units), f"line {row + 2} has .* in unusable units: .*'{units}'"


def units_lost(table: pd.DataFrame, row: int, _: Draw) -> tuple[pd.DataFrame, str]:
    table["units"] = "ug/m3"
    return changed(table, row, units=""), f"line {row + 2} has no units"


def units_exaggerated(table: pd.DataFrame, _: int, draw: Draw) -> tuple[pd.DataFrame, str]:
    units = draw(st.sampled_from(["mg/m3", "kg m-3", "g m-3"]))
    return table.rename(columns={"value": f"value [{units}]"}), f"values that are impossible.* {units} at"


def other_units_called_micrograms(table: pd.DataFrame, _: int, draw: Draw) -> tuple[pd.DataFrame, str]:
    name, factor = draw(st.sampled_from(["pm25", "o3"])), draw(st.sampled_from([1e-3, 1e-9]))
    numbers = table["value"].astype(float) * np.where(table["pollutant"] == name, factor, 1.0)
    return table.assign(value=numbers.map("{:.6g}".format)), f"has a mean {name} of .*: it is in other units"


def all_elsewhere(table: pd.DataFrame, _: int, __: Draw) -> tuple[pd.DataFrame, str]:
    return table.assign(lat="-20.0"), "none of the 3 stations"


def another_year(table: pd.DataFrame, _: int, __: Draw) -> tuple[pd.DataFrame, str]:
    return table.assign(time=table["time"].str.replace("2018", "2015")), "none at the valid times"


HARMFUL = [
    no_measurement, no_number, no_time, no_whole_hour, entry_lost, column_lost, column_twice, units_twice,
    value_twice, station_moved, units_without_meaning, units_lost, units_exaggerated,
    other_units_called_micrograms, all_elsewhere, another_year,
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@door_draws
@given(data=st.data(), harm=st.sampled_from(HARMFUL), row=st.integers(0, 239))
def test_harmful_observations_are_refused_by_line(run: LoadedRun, data: Any, harm: Any, row: int) -> None:
    table, message = harm(observations(), row, data.draw)
    note(harm.__name__)
    with tempfile.TemporaryDirectory() as folder:
        path = write(table, Path(folder, "harmful.csv"))
        with pytest.raises(ValueError, match=message):
            scores(run, path)
