"""Reading of observations from text: one value per line, as spreadsheets and networks write them."""

import codecs
import csv
import io
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pandas as pd

from aqtopo.safe_files import is_special

COLUMNS = ("id", "lat", "lon", "time", "pollutant", "value")

NUMBERS = ("lat", "lon", "value")
"""Columns of numbers."""

UNITS = ("units", "unit")
"""Names of the optional column of units."""

SEPARATORS = (",", ";", "\t")

MISSING = ("", "na", "n/a", "nan", "null", "none")
"""A missing value, in any case; in the column `value` only, for a station may be called NA."""

_LONGEST_LINE = 2**20
"""Longest first line [bytes]: a file that is no table is not read into memory."""

_DECIMAL_COMMA = r"[-+]?\d*,\d+([eE][-+]?\d+)?"

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Encodings by the byte order mark that the file begins with."""


def read_observations(path: Path) -> pd.DataFrame:
    """Read a table with the columns `COLUMNS`, and maybe `units`.

    The units may also be in the header of the values, as in `value [mg/m3]`. The separator is a comma, a
    semicolon or a tab; with the last two, numbers may have a decimal comma. The text is UTF-8, or UTF-16 with
    a byte order mark. Times are ISO 8601, UTC unless they have an offset; the hour 24:00 is 00:00 of the next
    day.

    Returns:
        A row per line, indexed by the line's number in the file: `id`, `pollutant`, `lat`, `lon`, `value`
        (float64, NaN if missing, as in the file), `time` (datetime64[ns], UTC), and `units`, "" if the file
        has none.

    Raises:
        ValueError: the file cannot be read, lacks a column, or has an invalid entry; the message gives line,
            column and entry.
    """
    table = _read_text(path)
    for name in COLUMNS[:-1]:
        empty = table[name] == ""
        if empty.any():
            raise ValueError(f"{path}, line {empty.idxmax()} has no {name}. Add it, or remove the line.")
    formulas = table["id"].str.match(r"[=+\-@]") & ~table["id"].str.fullmatch(r"[-+]?[\d.]+")
    if formulas.any():
        line = formulas.idxmax()
        raise ValueError(
            f"{path}, line {line} has the station {table.loc[line, 'id']!r}, which spreadsheets run as a "
            "formula when they open the table of the scores. Rename the station."
        )
    for name in NUMBERS[:2]:
        table[name] = _parsed(path, table[name], _numbers, "a number")
    given = table["value"][~table["value"].str.lower().isin(MISSING)]
    table["value"] = _parsed(path, given, _numbers, "a number").reindex(table.index)
    table["time"] = _parsed(path, table["time"], _times, "a time in ISO 8601, such as 2018-01-15T00")
    odd = table["time"] != table["time"].dt.floor("h")
    if odd.any():
        line = odd.idxmax()
        raise ValueError(
            f"{path}, line {line} has the time {table.loc[line, 'time']}, which is not a whole hour. Give "
            "hourly means."
        )
    return table


def _read_text(path: Path) -> pd.DataFrame:
    """Return the entries of the columns as text without blanks around it, indexed by line."""
    if is_special(path):
        _refuse(path, "it is a pipe or a device")
    try:
        with path.open("rb") as file:
            content = file.read(_LONGEST_LINE)
            if len(content) == _LONGEST_LINE and b"\n" not in content:
                _refuse(path, f"its first line has more than {_LONGEST_LINE} bytes")
            content += file.read()
    except OSError as error:
        _refuse(path, str(error.strerror))
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        _refuse(path, f"its byte {error.start} is not {encoding.upper()}")
    header = text.partition("\n")[0].strip()
    found = {mark: _names(name.strip('"\t ') for name in header.split(mark))[0] for mark in SEPARATORS}
    separator = max(SEPARATORS, key=lambda mark: len(set(COLUMNS) & set(found[mark])))
    absent = [name for name in COLUMNS if name not in found[separator]]
    if absent:
        _refuse(path, f"it has no column {', '.join(absent)}; its first line is {header[:100]!r}")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    names, units = _names(next(reader))
    given = [*names, *(["units"] if units else [])]
    twice = [name for name in (*COLUMNS, "units") if given.count(name) > 1]
    if twice:
        _refuse(path, f"its first line has more than one {twice[0]}: {header[:100]!r}")
    rows, lines = [], []
    try:
        for entries in reader:
            if any(entry.strip() for entry in entries):
                if len(entries) != len(names):
                    _refuse(
                        path, f"line {reader.line_num} has {len(entries)} entries, and line 1 {len(names)}"
                    )
                rows.append([entry.strip() for entry in entries])
                lines.append(reader.line_num)
    except csv.Error as error:  # a quotation mark that is not closed
        _refuse(path, f"line {reader.line_num}: {error}")
    table = pd.DataFrame(rows, columns=names, index=lines, dtype=str)
    # Columns of other names may be repeated.
    table = table.loc[:, ~table.columns.duplicated()].reindex(columns=[*COLUMNS, "units"], fill_value=units)
    if separator != ",":  # in a comma-separated file, a quoted comma separates thousands
        _check_decimal_marks(path, table)
        for name in NUMBERS:
            table[name] = _with_points(table[name])
    if "units" in names and (table["units"] == "").any():
        line = (table["units"] == "").idxmax()
        raise ValueError(f"{path}, line {line} has no units. Add them, or leave out the column for ug m-3.")
    return table


def _names(header: Iterable[str]) -> tuple[list[str], str]:
    """Return the names in lower case, and the units in the header of the values, as in `value [mg/m3]`."""
    names, units = [], ""
    for name in (name.strip() for name in header):
        if match := re.fullmatch(r"(?i)value\s*[\[(](.*)[\])]", name):
            units = match[1].strip()
        plain = "value" if match else name.lower()
        names.append("units" if plain in UNITS else plain)
    return names, units


def _refuse(path: Path, fact: str) -> NoReturn:
    raise ValueError(
        f"the stations {path} cannot be read: {fact}. It must be UTF-8 text with the columns "
        f"{', '.join(COLUMNS)}, separated by comma, semicolon or tab."
    )


def _parsed(
    path: Path, entries: pd.Series, parse: Callable[[pd.Series], pd.Series], expected: str
) -> pd.Series:
    """Parse a column with a function that returns NaN or NaT for an invalid entry.

    Raises:
        ValueError: an entry is invalid.
    """
    parsed = parse(entries)
    if parsed.isna().any():
        line = parsed.isna().idxmax()
        raise ValueError(
            f"{path}, line {line}, column {entries.name}: {entries[line]!r} is not {expected}. Correct it, "
            "or remove the line."
        )
    return parsed


def _numbers(entries: pd.Series) -> pd.Series:
    return pd.to_numeric(entries, errors="coerce").astype(np.float64)


def _check_decimal_marks(path: Path, table: pd.DataFrame) -> None:
    """Refuse decimal commas together with points, which may then separate thousands.

    Raises:
        ValueError: the message gives the line and column of a number with a point.
    """
    numbers = table[list(NUMBERS)].stack()
    commas = numbers[numbers.str.fullmatch(_DECIMAL_COMMA)]
    points = numbers[numbers.str.fullmatch(r"[-+]?\d*\.\d+([eE][-+]?\d+)?")]
    if len(commas) and len(points):
        (line, column), (other, _) = points.index[0], commas.index[0]
        raise ValueError(
            f"{path}, line {line}, column {column}: {points.iloc[0]!r} has a point, and line {other} has "
            f"{commas.iloc[0]!r} with a decimal comma. Write all numbers with the same decimal mark."
        )


def _with_points(entries: pd.Series) -> pd.Series:
    """Replace decimal commas: the only comma of a number without a point; others may separate thousands."""
    decimal = entries.str.fullmatch(_DECIMAL_COMMA)
    return entries.mask(decimal, entries.str.replace(",", "."))


def _times(entries: pd.Series) -> pd.Series:
    midnight = entries.str.fullmatch(r".*[T ]24(:?00){0,2}(Z|[-+]\d\d:?\d\d)?")
    hours = entries.mask(midnight, entries.str.replace(r"([T ])24", r"\g<1>00", regex=True))
    times = pd.to_datetime(hours, utc=True, format="ISO8601", errors="coerce").dt.tz_localize(None)
    times += pd.to_timedelta(midnight.astype(int), unit="D")
    known = times.between(pd.Timestamp("1678-01-01"), pd.Timestamp("2262-01-01"))  # of nanoseconds
    return times.where(known).astype("datetime64[ns]")
