import codecs
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqtopo.evaluation.observations import COLUMNS, MISSING, read_observations

ROWS = [
    ("0101A", "30.25", "100.5", "2018-01-15T00", "pm25", "4.15e+01"),
    ("NA", "31", "-120.75", "2018-01-15T23", "o3", "-0.5"),
    ("null", "31.5", "239.25", "2018-01-15T01:00Z", "co", "1200"),
]


def written(tmp_path: Path, rows: list[tuple[str, ...]] = ROWS, **options: str) -> Path:
    """Write rows under a header, with another separator, decimal mark, encoding or line end."""
    separator, decimal = options.get("separator", ","), options.get("decimal", ".")
    lines = [separator.join(COLUMNS)]
    for row in rows:
        numbers = {1, 2, 5}
        lines.append(
            separator.join(
                entry.replace(".", decimal) if place in numbers else entry for place, entry in enumerate(row)
            )
        )
    path = tmp_path / "observed.csv"
    text = options.get("end", "\n").join(lines) + options.get("end", "\n")
    path.write_bytes(text.encode(options.get("encoding", "utf-8")))
    return path


@given(
    marks=st.sampled_from([(",", "."), (";", "."), (";", ","), ("\t", "."), ("\t", ",")]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    end=st.sampled_from(["\n", "\r\n", "\n\n"]),
    order=st.permutations(range(len(ROWS))),
)
def test_any_usual_form_gives_the_same_table(
    tmp_path_factory: pytest.TempPathFactory,
    marks: tuple[str, str],
    encoding: str,
    end: str,
    order: list[int],
) -> None:
    folder = tmp_path_factory.mktemp("forms")
    plain = read_observations(written(folder))
    rows = [ROWS[place] for place in order]
    other = read_observations(
        written(folder, rows, separator=marks[0], decimal=marks[1], encoding=encoding, end=end)
    )
    expected = plain.iloc[order].reset_index(drop=True)
    pd.testing.assert_frame_equal(other.reset_index(drop=True), expected)


def test_values_types_and_line_numbers(tmp_path: Path) -> None:
    table = read_observations(written(tmp_path))
    assert table.index.tolist() == [2, 3, 4]
    assert table["id"].tolist() == ["0101A", "NA", "null"]
    assert table["value"].tolist() == [41.5, -0.5, 1200.0]
    assert table["lon"].tolist() == [100.5, -120.75, 239.25]
    assert table["time"].dtype == "datetime64[ns]"
    assert table["time"].iloc[2] == pd.Timestamp("2018-01-15T01")


@pytest.mark.parametrize(
    "text", ["2018-02-28T24", "2018-02-28T24:00", "2018-02-28 24:00:00", "2018-02-28T24:00Z"]
)
def test_the_hour_24_is_the_next_day(tmp_path: Path, text: str) -> None:
    rows = [(*ROWS[0][:3], text, *ROWS[0][4:])]
    assert read_observations(written(tmp_path, rows))["time"].iloc[0] == pd.Timestamp("2018-03-01T00")


@pytest.mark.parametrize("text", [*MISSING, "NaN", "NULL"])
def test_a_missing_value_is_nan(tmp_path: Path, text: str) -> None:
    table = read_observations(written(tmp_path, [(*ROWS[0][:5], text), ROWS[1]]))
    np.testing.assert_array_equal(table["value"], [np.nan, -0.5])


@pytest.mark.parametrize(
    ("column", "entry", "message"),
    [
        ("value", "ND", "line 3, column value: 'ND' is not a number"),
        ("lat", "nan", "line 3, column lat: 'nan' is not a number"),
        ("lon", "100E", "line 3, column lon: '100E' is not a number"),
        ("time", "15/01/2018 00:00", "line 3, column time: '15/01/2018 00:00' is not a time in ISO 8601"),
        ("time", "2018-01-15T00:30", "line 3 has the time 2018-01-15 00:30:00, which is not a whole hour"),
        ("id", "", "line 3 has no id"),
    ],
)
def test_an_invalid_entry_is_named_with_its_line(
    tmp_path: Path, column: str, entry: str, message: str
) -> None:
    row = list(ROWS[0])
    row[COLUMNS.index(column)] = entry
    with pytest.raises(ValueError, match=message):
        read_observations(written(tmp_path, [ROWS[1], tuple(row)]))


def test_a_number_with_separated_thousands_is_refused(tmp_path: Path) -> None:
    rows = [(*ROWS[0][:5], "1,200.5")]
    with pytest.raises(ValueError, match=r"'1,200\.5' is not a number"):
        read_observations(written(tmp_path, rows, separator=";"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no column id"),
        (b"station,value\n", "has no column id, lat, lon, time, pollutant"),
        (",".join(COLUMNS).encode() + b"\nM\xfcnchen,1,2,2018-01-15T00,pm25,3\n", "its byte 33 is not UTF-8"),
        (codecs.BOM_UTF16_LE + b"a", "is not UTF-16"),
        (",".join(COLUMNS).encode() + b"\nA,1,2,2018-01-15T00,pm25\n", "line 2 has 5 entries, and line 1 6"),
    ],
)
def test_a_file_that_is_no_such_table_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "bad.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_observations(tmp_path / "bad.csv")
    assert "separated by comma, semicolon or tab" in str(caught.value)


@pytest.mark.parametrize("separator", [";", "\t"])
@pytest.mark.parametrize("column", [1, 2, 5])
def test_decimal_commas_together_with_points_are_refused_by_line(
    tmp_path: Path, separator: str, column: int
) -> None:
    rows = [tuple(entry.replace(".", ",") for entry in row) for row in ROWS]
    changed = list(rows[2])
    changed[column] = "1.234"  # 1234 if the point separates thousands
    path = written(tmp_path, [*rows[:2], tuple(changed)], separator=separator)
    message = (
        f"line 4, column {COLUMNS[column]}: '1.234' has a point, and line 2 has '30,25' with a decimal comma"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        read_observations(path)


def test_a_quoted_comma_in_a_comma_separated_file_is_no_decimal_mark(tmp_path: Path) -> None:
    path = tmp_path / "observed.csv"
    path.write_text(f'{",".join(COLUMNS)}\na,31.5,100,2018-01-15T01:00Z,co,"1,234"\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 2, column value: '1,234' is not a number"):
        read_observations(path)


def test_a_quotation_mark_that_is_not_closed_is_named(tmp_path: Path) -> None:
    path = tmp_path / "observed.csv"
    row = "a,31.5,100,2018-01-15T01:00Z,co,1200\n"
    path.write_text(f'{",".join(COLUMNS)}\n"{row * 5000}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"cannot be read: line \d+: field larger than field limit"):
        read_observations(path)


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "+1+cmd", "-2+3", "@SUM(1)"])
def test_a_station_that_is_a_formula_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"line 3 has the station .* formula"):
        read_observations(written(tmp_path, [ROWS[0], (name, *ROWS[1][1:])]))


def test_a_station_may_have_a_number_as_its_name(tmp_path: Path) -> None:
    assert read_observations(written(tmp_path, [("-12", *ROWS[1][1:])]))["id"].tolist() == ["-12"]
