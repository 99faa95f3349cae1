from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest

from aqtopo.data.prepare.hourly import SourceGrid, UnusableFileError, read_grid, read_hour, rotate_wind
from aqtopo.variables import DYNAMIC_VARIABLES
from tests.data.prepare.raw import Values, field, hourly_file

CO, TEMP = DYNAMIC_VARIABLES.index("co"), DYNAMIC_VARIABLES.index("temp")
BLOCK = (slice(2, 4), slice(3, 6))


@pytest.fixture(scope="module")
def grid(source_grid: tuple[Values, Values]) -> SourceGrid:
    return read_grid(hourly_file(*source_grid, 0))


def test_fields_have_the_order_and_units_of_the_store(grid: SourceGrid) -> None:
    hour = read_hour(hourly_file(grid.lat, grid.lon, 5), grid)
    for place, name in enumerate(DYNAMIC_VARIABLES):
        expected = field(name, grid.lat, grid.lon, 5) * (1e3 if name == "co" else 1.0)
        np.testing.assert_allclose(hour.fields[place], expected, rtol=1e-6)
    assert hour.converted == {"co": "mg/m3"}
    assert not any(hour.out_of_range.values())


@pytest.mark.parametrize(
    "units", ["mg/m3", "mg m-3", "mg m^-3", "mg m**-3", " mg/m^3 ", "milligram/m³", "1e-6 kg m-3"]
)
def test_all_spellings_of_units_are_known(grid: SourceGrid, units: str) -> None:
    hour = read_hour(hourly_file(grid.lat, grid.lon, 5, units={"co": units}), grid)
    assert 700 < hour.fields[CO].mean() < 900


def test_co_in_micrograms_is_not_converted(grid: SourceGrid) -> None:
    hour = read_hour(hourly_file(grid.lat, grid.lon, 5, units={"co": "ug/m3"}), grid)
    assert 700 < hour.fields[CO].mean() < 900
    assert hour.converted == {}


@pytest.mark.parametrize("sentinel", [None, -9999.0, 9.9e36, np.nan])
def test_missing_and_impossible_values_become_nan(grid: SourceGrid, sentinel: float | None) -> None:
    hour = read_hour(hourly_file(grid.lat, grid.lon, 5, blank=BLOCK, sentinel=sentinel), grid)
    assert np.isnan(hour.fields[:, 2:4, 3:6]).all()
    assert np.isfinite(hour.fields).sum() == hour.fields.size - 11 * 6
    impossible = 6 if sentinel in (-9999.0, 9.9e36) else 0
    assert hour.out_of_range["temp"] == impossible


def test_a_fill_value_within_the_physical_range_becomes_nan(grid: SourceGrid) -> None:
    hour = read_hour(hourly_file(grid.lat, grid.lon, 5, blank=BLOCK, sentinel=-99.0), grid)
    assert np.isnan(hour.fields[0, 2:4, 3:6]).all()
    assert hour.out_of_range["u"] == 6


@pytest.mark.parametrize("value", [-9999.0, np.nan, 1e20])
def test_a_position_that_is_no_position_is_refused(grid: SourceGrid, value: float) -> None:
    lat = grid.lat.copy()
    lat[3, 4] = value
    with pytest.raises(UnusableFileError, match="missing or impossible values in lat2d, lon2d"):
        read_grid(hourly_file(lat, grid.lon, 5))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("value", [-99.0, 0.0, 15.0])
def test_a_position_far_from_its_neighbours_is_refused(grid: SourceGrid, axis: int, value: float) -> None:
    axes = [grid.lat.copy(), grid.lon.copy()]
    if value == 15.0:
        axes[axis][:, 20:] += value
    else:
        axes[axis][3, 4] = value
    with pytest.raises(UnusableFileError, match=r"jump in lat2d, lon2d|impossible values in lat2d, lon2d"):
        read_grid(hourly_file(*axes, 5))


@pytest.mark.parametrize("lon", [np.arange(100.0, 120.0), np.arange(0.0, 360.0)])
def test_a_regular_grid_has_no_jump(lon: Values) -> None:
    lat = np.broadcast_to(np.arange(-5.0, 80.0)[:, None], (85, lon.size))
    found = read_grid(hourly_file(lat, np.broadcast_to(lon, lat.shape), 5))
    np.testing.assert_array_equal(found.lat, lat)
    np.testing.assert_array_equal(found.lon[0], lon)


@pytest.mark.parametrize("kind", ["string", "compound", "ragged", "packing"])
def test_a_variable_that_is_not_numbers_is_refused(grid: SourceGrid, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "hour.nc"
    path.write_bytes(hourly_file(grid.lat, grid.lon, 5))
    with netCDF4.Dataset(path, "a") as file:
        if kind == "packing":
            file["pm25"].scale_factor = "ten"
        else:
            types: dict[str, Any] = {
                "string": str,
                "compound": file.createCompoundType(np.dtype([("a", "f4"), ("b", "f4")]), "pair"),
                "ragged": file.createVLType("f4", "list"),
            }
            file.renameVariable("pm25", "other")
            file.createVariable("pm25", types[kind], ("bottom-top", "south-north", "west-east"))
    with pytest.raises(UnusableFileError, match=r"pm25 (of the type|with scale_factor = 'ten')"):
        read_hour(path.read_bytes(), grid)


UNUSABLE: dict[str, tuple[dict[str, object], str]] = {
    "units unknown": ({"units": {"no2": "ppb"}}, "gives no2 in units .*'ppb' is a ratio of volumes"),
    "ratio of masses": ({"units": {"no2": "kg/kg"}}, "gives no2 in 'kg/kg', a ratio of masses"),
    "no units": ({"units": {"no2": ""}}, "gives no2 without units"),
    "wrong dimension": ({"units": {"u": "K"}}, "gives u in units .*'K' .temperature. cannot be converted"),
    "co says micrograms": (
        {"units": {"co": "ug m-3 "}},
        "a mean co of .*, outside 20 to 20000 ug m-3: it is in other units than 'ug m-3 '",
    ),
    "pm25 says nanograms": ({"units": {"pm25": "ng m-3"}}, "a mean pm25 of .*, outside 0.04 to 5000 ug m-3"),
    "pressure says hPa": ({"units": {"psfc": "hPa"}}, "768 of 768 values of psfc outside"),
    "no value": ({"blank": (slice(None), slice(None))}, "has no value"),
}


@pytest.mark.parametrize("fault", UNUSABLE)
def test_an_unusable_file_is_refused_with_the_reason(grid: SourceGrid, fault: str) -> None:
    changes, message = UNUSABLE[fault]
    content = hourly_file(grid.lat, grid.lon, 5, **changes)  # type: ignore[arg-type]
    with pytest.raises(UnusableFileError, match=message):
        read_hour(content, grid)


@pytest.mark.parametrize("format", ["NETCDF4", "NETCDF3_64BIT_OFFSET"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.95])
def test_a_truncated_file_is_refused(grid: SourceGrid, format: str, share: float) -> None:
    content = hourly_file(grid.lat, grid.lon, 5, format=format)
    read_hour(content, grid)
    with pytest.raises(UnusableFileError):
        read_hour(content[: int(share * len(content))], grid)


def test_a_file_on_another_grid_is_refused(grid: SourceGrid) -> None:
    with pytest.raises(UnusableFileError, match="lies on another grid"):
        read_hour(hourly_file(grid.lat + 0.1, grid.lon, 5), grid)


def test_a_file_without_a_variable_is_refused(grid: SourceGrid) -> None:
    file = netCDF4.Dataset("x.nc", "w", memory=1000)
    file.createDimension("x", 3)
    content = bytes(file.close())
    with pytest.raises(UnusableFileError, match="lacks the variable lat2d"):
        read_grid(content)


def test_wind_along_grid_rows_is_rotated_to_true_directions(grid: SourceGrid) -> None:
    fields = np.zeros((11, *grid.lat.shape), np.float32)
    fields[0] = 5.0
    rotated = rotate_wind(fields, grid.angle)
    np.testing.assert_allclose(np.hypot(rotated[0], rotated[1]), 5.0, rtol=1e-6)
    # A straight row of a Lambert grid leaves its parallel to the south, on either side of the centre.
    assert rotated[1, 12, -1] < -0.5
    assert rotated[1, 12, 0] > 0.5
    along = np.degrees(np.arctan2(rotated[1, 12, -2], rotated[0, 12, -2]))
    lat, lon = grid.lat[12, -3:], grid.lon[12, -3:]
    expected = np.degrees(np.arctan2(lat[2] - lat[0], (lon[2] - lon[0]) * np.cos(np.radians(lat[1]))))
    assert along == pytest.approx(expected, abs=0.01)


def test_shapes_that_would_fill_the_memory_are_not_read() -> None:
    file = netCDF4.Dataset("hour.nc", "w", memory=1024)
    axes = ("south-north", "west-east")
    for dimension in axes:
        file.createDimension(dimension, 40_000)
    for name in ("lat2d", "lon2d"):
        file.createVariable(name, "f4", axes, zlib=True, chunksizes=(4000, 4000))
    content = bytes(file.close())
    assert len(content) < 100_000
    with pytest.raises(UnusableFileError, match="has 1600000000 values of lat2d, more than the maximum"):
        read_grid(content)
