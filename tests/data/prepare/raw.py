"""Synthetic hourly files and daily archives in CAQRA's layout, with optional faults."""

import io
import tarfile
import tempfile
import zipfile
from pathlib import Path

import netCDF4
import numpy as np
from numpy.typing import NDArray

from aqtopo.data.prepare.archives import stamp_name

Values = NDArray[np.float64]

UNITS = {
    "u": "m/s", "v": "m/s", "temp": "K", "rh": "%", "psfc": "Pa", "pm25": "ug/m3", "pm10": "ug/m3",
    "so2": "ug/m3", "no2": "ug/m3", "o3": "ug/m3", "co": "mg/m3",
}  # fmt: skip
LEVELS = {
    "u": 3.0, "v": -1.0, "temp": 285.0, "rh": 50.0, "psfc": 9e4, "pm25": 40.0, "pm10": 70.0, "so2": 12.0,
    "no2": 25.0, "o3": 60.0, "co": 0.8,
}  # fmt: skip


def lambert_grid(rows: int, columns: int, spacing: float) -> tuple[Values, Values]:
    """Return positions (rows, columns) [degrees] of a Lambert conformal grid over China, spacing [m]."""
    radius, lat0, lon0, low, high = 6.371e6, 34.0, 103.5, np.radians(25.0), np.radians(47.0)

    def tangent(phi: float) -> float:
        return float(np.tan(np.pi / 4 + phi / 2))

    cone = np.log(np.cos(low) / np.cos(high)) / np.log(tangent(high) / tangent(low))
    scale = radius * np.cos(low) * tangent(low) ** cone / cone
    x = (np.arange(columns) - (columns - 1) / 2) * spacing
    y = scale / tangent(np.radians(lat0)) ** cone - (np.arange(rows) - (rows - 1) / 2)[:, None] * spacing
    lat = np.degrees(2 * np.arctan((scale / np.hypot(x, y)) ** (1 / cone)) - np.pi / 2)
    return lat, lon0 + np.degrees(np.arctan2(x, y) / cone)


def field(name: str, lat: Values, lon: Values, hour_utc: int) -> Values:
    """Return a field linear in latitude and longitude, in the file's units; warmest at 15 h local time."""
    level = LEVELS[name]
    values = level * (1 + 0.004 * (lat - 34) + 0.002 * (lon - 104))
    if name == "temp":
        values = values + 6.0 * np.cos(2 * np.pi * (hour_utc + 104.0 / 15.0 - 15.0) / 24.0)
    return values


def hourly_file(
    lat: Values,
    lon: Values,
    hour_utc: int,
    *,
    units: dict[str, str] | None = None,
    blank: tuple[slice, slice] | None = None,
    sentinel: float | None = None,
    format: str = "NETCDF4",
) -> bytes:
    """Return one file: `units` overrides units (co with its values), `blank` cells hold `sentinel`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "hour.nc")
        with netCDF4.Dataset(path, "w", format=format) as file:
            _fill(file, lat, lon, hour_utc, units or {}, blank, 1e20 if sentinel is None else sentinel)
        return path.read_bytes()


def _fill(
    file: netCDF4.Dataset,
    lat: Values,
    lon: Values,
    hour_utc: int,
    units: dict[str, str],
    blank: tuple[slice, slice] | None,
    sentinel: float,
) -> None:
    for dimension, size in (("west-east", lat.shape[1]), ("south-north", lat.shape[0]), ("bottom-top", 1)):
        file.createDimension(dimension, size)
    for name, values in (("lat2d", lat), ("lon2d", lon)):
        position = file.createVariable(name, "f4", ("south-north", "west-east"))
        position.units = "degrees"
        position[:] = values
    for name, usual in UNITS.items():
        variable = file.createVariable(
            name, "f4", ("bottom-top", "south-north", "west-east"), fill_value=np.float32(1e20)
        )
        variable.units = units.get(name, usual)
        values = field(name, lat, lon, hour_utc)
        if name == "co" and variable.units == "ug/m3":
            values = values * 1e3
        if blank is not None:
            values[blank] = sentinel
        variable[:] = values[None]


def write_archive(path: Path, members: dict[str, bytes]) -> None:
    """Write a zip, tar or tar.gz by its suffix; members are in a folder as in the originals."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def day_files(lat: Values, lon: Values, day: str, zone_ahead: int = 0) -> dict[str, bytes]:
    """Return the 24 files of a day in the file names' time zone, in a folder named after the day."""
    start = np.datetime64(day, "h")
    return {
        f"CN-Reanalysis{day.replace('-', '')}/{stamp_name(start + np.timedelta64(hour, 'h'))}": hourly_file(
            lat, lon, (hour - zone_ahead) % 24
        )
        for hour in range(24)
    }
