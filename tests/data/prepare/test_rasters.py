from pathlib import Path

import netCDF4
import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from aqtopo.data.grid import Grid
from aqtopo.data.prepare.rasters import elevation, population

GRID = Grid((4, 8), (30.0, 34.0), (100.0, 108.0))


def heights(lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
    return (1000.0 + 50.0 * (lat[:, None] - 32.0) + 20.0 * (lon - 104.0)).astype(np.float32)


def write_netcdf(
    path: Path, name: str = "elevation", north_first: bool = False, scale: float = 1.0, units: str = "m"
) -> Path:
    lat, lon = np.arange(29.05, 35.0, 0.1), np.arange(99.05, 109.0, 0.1)
    lat = lat[::-1] if north_first else lat
    with netCDF4.Dataset(path, "w") as file:
        file.createDimension("lat", lat.size)
        file.createDimension("lon", lon.size)
        file.createVariable("lat", "f8", ("lat",))[:] = lat
        file.createVariable("lon", "f8", ("lon",))[:] = lon
        variable = file.createVariable(name, "f4", ("lat", "lon"))
        variable[:] = heights(lat, lon) * scale
        if units:
            variable.units = units
    return path


def write_tiff(path: Path, crs: str = "EPSG:4326", scale: float = 1.0, units: str = "") -> Path:
    lat, lon = np.arange(34.95, 29.0, -0.1), np.arange(99.05, 109.0, 0.1)
    values = heights(lat, lon) * np.float32(scale)
    values[:3] = -32768
    with rasterio.open(
        path, "w", driver="GTiff", width=lon.size, height=lat.size, count=1, dtype="float32", crs=crs,
        transform=from_origin(99.0, 35.0, 0.1, 0.1), nodata=-32768,
    ) as file:  # fmt: skip
        file.write(values, 1)
        if units:
            file.units = [units]
    return path


@pytest.mark.parametrize("kind", ["north last", "north first", "tiff"])
def test_target_cells_are_means_of_the_files_cells(tmp_path: Path, kind: str) -> None:
    file = (
        write_tiff(tmp_path / "z.tif")
        if kind == "tiff"
        else write_netcdf(tmp_path / "z.nc", north_first=kind == "north first")
    )
    expected = heights(GRID.lat_centres, GRID.lon_centres)
    np.testing.assert_allclose(elevation(file, GRID), expected, rtol=1e-5)


def test_the_altitude_map_is_the_default() -> None:
    assert elevation(None, GRID).max() > 2500
    assert population(None, GRID).sum() == 0


def test_population_is_read(tmp_path: Path) -> None:
    file = write_netcdf(tmp_path / "p.nc", "population_density", units="Persons per square kilometer")
    assert population(file, GRID).mean() == pytest.approx(1000, rel=0.01)


def test_a_curvilinear_file_is_regridded(tmp_path: Path) -> None:
    lat, lon = np.arange(29.05, 35.0, 0.1), np.arange(99.05, 109.0, 0.1)
    with netCDF4.Dataset(tmp_path / "wrf.nc", "w") as file:
        file.createDimension("y", lat.size)
        file.createDimension("x", lon.size)
        file.createVariable("XLAT", "f8", ("y", "x"))[:] = np.broadcast_to(lat[:, None], (lat.size, lon.size))
        file.createVariable("XLONG", "f8", ("y", "x"))[:] = np.broadcast_to(lon, (lat.size, lon.size))
        file.createVariable("HGT", "f4", ("y", "x"))[:] = heights(lat, lon)
        file["HGT"].units = "m"
    expected = heights(GRID.lat_centres, GRID.lon_centres)
    np.testing.assert_allclose(elevation(tmp_path / "wrf.nc", GRID), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "units", "factor"),
    [
        ("z", "m**2 s**-2", 9.80665),
        ("orog", "gpm", 1.0),
        ("elevation", "ft", 1 / 0.3048),
        ("topo", "km", 1e-3),
    ],
)
def test_heights_are_converted_by_their_units(tmp_path: Path, name: str, units: str, factor: float) -> None:
    file = write_netcdf(tmp_path / "z.nc", name, scale=factor, units=units)
    expected = heights(GRID.lat_centres, GRID.lon_centres)
    np.testing.assert_allclose(elevation(file, GRID), expected, rtol=1e-5)
    if units == "ft":
        file = write_tiff(tmp_path / "z.tif", scale=factor, units=units)
        np.testing.assert_allclose(elevation(file, GRID), expected, rtol=1e-5)


def test_heights_without_units_that_are_no_metres_are_refused(tmp_path: Path) -> None:
    # The altitude map has a mean of 2257 m here; six times 1000 m is 2.7 times as much.
    with pytest.raises(ValueError, match=r"2\.7 times as high as the altitude map.*`units`"):
        elevation(write_tiff(tmp_path / "z.tif", scale=6.0), GRID)
    with pytest.raises(ValueError, match=r"elevation without units.*attrs\['units'\] = 'm'"):
        elevation(write_netcdf(tmp_path / "z.nc", units=""), GRID)


@pytest.mark.parametrize(("scale", "ratio"), [(0.1, "0.044"), (0.3048, "0.14"), (0.8, "0.35")])
def test_heights_that_are_too_low_for_the_region_are_refused(
    tmp_path: Path, scale: float, ratio: str
) -> None:
    with pytest.raises(ValueError, match=rf"is {ratio}\d* times as high as the altitude map.*decametres"):
        elevation(write_netcdf(tmp_path / "z.nc", scale=scale), GRID)


@pytest.mark.parametrize("cells", [(slice(None), slice(None)), (slice(10, 40), slice(10, 30))])
@pytest.mark.parametrize("fill", [-99.0, -99.9])
def test_many_cells_of_the_same_depth_are_a_fill_value(
    tmp_path: Path, fill: float, cells: tuple[slice, slice]
) -> None:
    file = write_netcdf(tmp_path / "z.nc")
    with netCDF4.Dataset(file, "a") as dataset:
        dataset["elevation"][*cells] = fill
    with pytest.raises(ValueError, match=rf"has elevation = {fill:g} in \d+ of \d+ values.*not declared"):
        elevation(file, GRID)


def test_a_depression_is_no_fill_value(tmp_path: Path) -> None:
    file = write_netcdf(tmp_path / "z.nc")
    with netCDF4.Dataset(file, "a") as dataset:
        dataset["elevation"][20:23, 20:23] = -99.0
    assert elevation(file, GRID).min() < 900.0


@pytest.mark.parametrize("value", [np.nan, 0.0, -99.0])
def test_cells_inland_without_a_height_are_refused(tmp_path: Path, value: float) -> None:
    file = write_netcdf(tmp_path / "z.nc")
    with netCDF4.Dataset(file, "a") as dataset:
        dataset["elevation"][9:22, 19:30] = value  # fewer cells of -99 than are a fill value for certain
    message = rf"no height above 0 m in 1 of 32 cells.* first at latitude 30\.5, .* 101\.5: {value:.1f}"
    with pytest.raises(ValueError, match=message):
        elevation(file, GRID)


def test_population_that_is_missing_is_zero(tmp_path: Path) -> None:
    file = write_netcdf(tmp_path / "p.nc", "population", units="km-2")
    with netCDF4.Dataset(file, "a") as dataset:
        dataset["population"][8:22, 18:40] = np.nan
    assert (population(file, GRID) == 0).any()


def test_heights_may_be_missing_over_sea(tmp_path: Path) -> None:
    sea = Grid((4, 8), (30.0, 34.0), (122.0, 130.0))
    with netCDF4.Dataset(write_netcdf(tmp_path / "z.nc", scale=0.03), "a") as dataset:
        dataset["lon"][:] = dataset["lon"][:] + 22.0
        dataset["elevation"][:, 30:60] = np.nan
    height = elevation(tmp_path / "z.nc", sea)
    assert np.isfinite(height).all()
    assert (height == 0).any()


def test_undeclared_fill_values_are_refused(tmp_path: Path) -> None:
    file = write_netcdf(tmp_path / "p.nc", "population", units="km-2")
    with netCDF4.Dataset(file, "a") as dataset:
        dataset["population"][20, 30] = -9999
    with pytest.raises(ValueError, match=r"population = -9999 in 1 of .* latitude 31\.05, longitude 102\.05"):
        population(file, GRID)


def test_longitudes_are_compared_modulo_360(tmp_path: Path) -> None:
    expected = elevation(write_netcdf(tmp_path / "z.nc"), GRID)
    with netCDF4.Dataset(write_netcdf(tmp_path / "turned.nc"), "a") as dataset:
        dataset["lon"][:] = dataset["lon"][:] - 360.0
    np.testing.assert_allclose(elevation(tmp_path / "turned.nc", GRID), expected, rtol=1e-5)


def test_unusable_files_are_refused(tmp_path: Path) -> None:
    kilometres = write_netcdf(tmp_path / "km.nc", scale=1e-3)
    with pytest.raises(
        ValueError, match=r"elevations from 0\.\d+ to 1\.\d+ on the grid, which are not metres"
    ):
        elevation(kilometres, GRID)
    with pytest.raises(ValueError, match=r"covers latitude 29 to 34\.1, the grid 25"):
        elevation(write_netcdf(tmp_path / "z.nc"), Grid((4, 8), (25.0, 34.0), (100.0, 108.0)))
    with pytest.raises(ValueError, match=r"has no elevation \(elevation\); it has other"):
        elevation(write_netcdf(tmp_path / "other.nc", "other"), GRID)
    with pytest.raises(ValueError, match=r"not on a latitude-longitude grid .*gdalwarp"):
        elevation(write_tiff(tmp_path / "utm.tif", "EPSG:32648"), GRID)
    with pytest.raises(ValueError, match="does not exist"):
        elevation(tmp_path / "nowhere.nc", GRID)
    (tmp_path / "broken.nc").write_text("no", encoding="utf-8")
    with pytest.raises(ValueError, match="is not a NetCDF file: it begins with no"):
        population(tmp_path / "broken.nc", GRID)
    (tmp_path / "page.tif").write_text("<html>", encoding="utf-8")
    with pytest.raises(ValueError, match="is not a NetCDF file but a web page"):
        population(tmp_path / "page.tif", GRID)
    whole = write_tiff(tmp_path / "whole.tif").read_bytes()
    (tmp_path / "half.tif").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"half\.tif is a damaged or incomplete GeoTIFF"):
        elevation(tmp_path / "half.tif", GRID)


def test_the_content_decides_between_netcdf_and_geotiff(tmp_path: Path) -> None:
    expected = heights(GRID.lat_centres, GRID.lon_centres)
    for written, name in (
        (write_tiff(tmp_path / "a.tif"), "a.nc"),
        (write_netcdf(tmp_path / "b.nc"), "b.tif"),
    ):
        np.testing.assert_allclose(elevation(written.rename(tmp_path / name), GRID), expected, rtol=1e-5)


def test_a_tiff_cannot_declare_more_than_its_bytes_hold(tmp_path: Path) -> None:
    path, corner = tmp_path / "large.tif", from_origin(99.0, 35.0, 1e-4, 1e-4)
    with rasterio.open(
        path, "w", driver="GTiff", width=60000, height=60000, count=1, dtype="float32", crs="EPSG:4326",
        transform=corner, tiled=True, sparse_ok=True,
    ):  # fmt: skip
        pass
    with pytest.raises(ValueError, match="declares 60000 x 60000 values of heights, more than its bytes"):
        elevation(path, GRID)
