"""Elevation and population on the target grid, from NetCDF or GeoTIFF files.

Target cells take the area-weighted mean of the file's cells; only the required part of a file is read.
Shapes: a x b cells of the file, H x W target grid.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from aqtopo.data.channels import open_channel, read_channel
from aqtopo.data.file_formats import check_size
from aqtopo.data.grid import Grid
from aqtopo.data.outside import normalise, open_outside
from aqtopo.data.prepare.regrid import Regridder
from aqtopo.data.topography import Topography, load_topography, overlap
from aqtopo.variables import VARIABLES, Variable

TOO_HIGH = 2.5
"""Ratio to the altitude map's mean height on land, or its inverse, from which a file is not in metres.

Feet have 3.3, metres called feet 0.3, decametres 0.1."""
LEAST_MEAN_METRES = 50.0
"""Mean height from which the ratio says something: the altitude map has steps of 28 m."""

Values = NDArray[np.float64]


class Raster(NamedTuple):
    """Values (a, b), NaN if missing, and cell centres: (a,), (b,), or both (a, b)."""

    values: Values
    lat: Values
    lon: Values


def elevation(file: Path | None, grid: Grid) -> NDArray[np.float32]:
    """Return the mean elevation (H, W) [m], 0 over sea; from pvlib's altitude map if no file is given.

    Raises:
        ValueError: the file cannot be read, does not cover the grid, has unusable units or values, or lacks
            heights inland.
    """
    known = load_topography(grid)
    if file is None:
        return known.elevation
    height = _on_grid(file, grid, VARIABLES["elevation"])
    _refuse_missing_inland(file, height, known, grid)
    height = np.nan_to_num(height)
    if not (height.min() >= -500.0 and 10.0 <= height.max() <= 9000.0):
        raise ValueError(
            f"{file} has elevations from {height.min():g} to {height.max():g} on the grid, which are not "
            "metres. Convert it to metres."
        )
    _compare_with_map(file, height, known)
    return height


def _refuse_missing_inland(file: Path, height: NDArray[np.float32], known: Topography, grid: Grid) -> None:
    """Refuse cells of land without a height: missing, 0 m of a lost chunk, or a fill value such as -99 m."""
    inland = ~(height > 1e-3) & (known.land > 0.999) & (known.elevation > LEAST_MEAN_METRES)
    if inland.any():
        row, column = np.argwhere(inland)[0]
        place = f"latitude {grid.lat_centres[row]:g}, longitude {grid.lon_centres[column]:g}"
        raise ValueError(
            f"{file} has no height above 0 m in {inland.sum()} of {inland.size} cells, which are land, "
            f"first at {place}: {height[row, column]:.1f} m, where pvlib's map has "
            f"{known.elevation[row, column]:.0f} m. Fill them: missing heights become 0 m, which is right "
            "only for the sea."
        )


def _compare_with_map(file: Path, height: NDArray[np.float32], known: Topography) -> None:
    """Compare the mean height on land with that of the altitude map, which shows other units."""
    land = known.mask > 0 if known.mask.any() else np.ones(height.shape, dtype=bool)
    mean, expected = float(height[land].mean()), float(known.elevation[land].mean())
    ratio = mean / max(expected, LEAST_MEAN_METRES)
    if ratio > TOO_HIGH or (expected >= LEAST_MEAN_METRES and ratio < 1 / TOO_HIGH):
        raise ValueError(
            f"{file} is {ratio:.2g} times as high as the altitude map of pvlib on the grid; feet would be "
            "3.3 times, geopotential 9.8 times, and decametres 0.1 times as high. Correct the attribute "
            "`units`, or convert it to metres."
        )


def population(file: Path | None, grid: Grid) -> NDArray[np.float32]:
    """Return the inhabitants per square kilometre (H, W); 0 if no file is given.

    Raises:
        ValueError: the file cannot be read, does not cover the grid, or has unusable units or values.
    """
    if file is None:
        return np.zeros(grid.shape, dtype=np.float32)
    return np.nan_to_num(_on_grid(file, grid, VARIABLES["population"]))


def _on_grid(file: Path, grid: Grid, variable: Variable) -> NDArray[np.float32]:
    """Return a variable (H, W), NaN in cells without a value."""
    raster = (_read_tiff if _is_tiff(file) else _read_netcdf)(file, grid, variable)
    if raster.lat.ndim == 2:
        return Regridder.between(raster.lat, raster.lon, grid)(raster.values)
    lat_edges, lon_edges = _edges(raster.lat), _edges(raster.lon)
    for axis, edges, (low, high) in (("latitude", lat_edges, grid.lat), ("longitude", lon_edges, grid.lon)):
        slack = (edges[1] - edges[0]) / 2
        if edges[0] > low + slack or edges[-1] < high - slack:
            raise ValueError(
                f"{file} covers {axis} {edges[0]:g} to {edges[-1]:g}, the grid {low:g} to {high:g}. Give a "
                "file that covers the grid."
            )
    by_row, by_column = overlap(grid.lat_edges, lat_edges), overlap(grid.lon_edges, lon_edges)
    finite = np.isfinite(raster.values)
    total = by_row @ np.where(finite, raster.values, 0.0) @ by_column.T
    share = by_row @ finite.astype(np.float64) @ by_column.T
    mean: Values = np.divide(total, share, out=np.full(grid.shape, np.nan), where=share > 1e-6)
    return mean.astype(np.float32)


def _is_tiff(file: Path) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as content:
        return content.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _read_netcdf(file: Path, grid: Grid, variable: Variable) -> Raster:
    channel = open_channel(open_outside(file), variable)
    lat, lon = (channel.given[axis].values.astype(np.float64) for axis in ("lat", "lon"))
    if lat.ndim == 2:
        return Raster(channel.load().values.values.astype(np.float64), lat, lon)
    rows, columns = _slice(lat, grid.lat), _slice(lon, grid.lon)
    values = channel.load(lat=rows, lon=columns).values.values
    return Raster(values.astype(np.float64), lat[rows], lon[columns])


def _filled(values: Any) -> Values:
    return np.ma.filled(np.ma.asarray(values).astype(np.float64), np.nan)


def _read_tiff(file: Path, grid: Grid, variable: Variable) -> Raster:
    """Read a GeoTIFF, which is taken to be in the variable's units if it names none."""
    import rasterio
    from rasterio.errors import RasterioError
    from rasterio.windows import Window

    try:
        with rasterio.open(file) as raster:
            transform = raster.transform
            if raster.crs is None or not raster.crs.is_geographic or transform.b or transform.d:
                raise ValueError(
                    f"{file} is not on a latitude-longitude grid (its reference system is {raster.crs}). "
                    "Convert it with `gdalwarp -t_srs EPSG:4326`."
                )
            check_size(file, "heights", (raster.height, raster.width), 4)
            lon = transform.c + transform.a * (np.arange(raster.width) + 0.5)
            lat = transform.f + transform.e * (np.arange(raster.height) + 0.5)
            rows, columns = _slice(lat, grid.lat), _slice(lon, grid.lon)
            window = Window.from_slices(rows, columns)
            values = _filled(raster.read(1, window=window, masked=True))
            units = raster.units[0] or variable.units
    except RasterioError as error:
        raise ValueError(
            f"{file} is a damaged or incomplete GeoTIFF ({error}). Download or copy it again, and compare "
            "its size with the source's."
        ) from error
    dataset = xr.Dataset(
        {variable.name: (("lat", "lon"), values, {"units": units})},
        coords={"lat": lat[rows], "lon": lon[columns]},
    )
    read = read_channel(normalise(dataset, str(file)), variable).values
    return Raster(read.values.astype(np.float64), read["lat"].values, read["lon"].values)


def _slice(axis: Values, span: tuple[float, float]) -> slice:
    """Return the slice of an axis that overlaps a span of the target, plus one cell on either side."""
    inside = np.flatnonzero((axis >= span[0]) & (axis <= span[1]))
    if not inside.size:
        inside = np.array([np.abs(axis - np.mean(span)).argmin()])
    return slice(max(int(inside[0]) - 1, 0), int(inside[-1]) + 2)


def _edges(centres: Values) -> Values:
    """Return the edges (a + 1,) of cells around ascending centres (a,)."""
    if centres.size < 2:
        raise ValueError("The raster has one row or column around the grid. Give a finer one.")
    half = np.diff(centres) / 2
    return np.concatenate([[centres[0] - half[0]], centres[:-1] + half, [centres[-1] + half[-1]]])
