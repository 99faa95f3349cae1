"""Files that the program opens, changed at random, or of another kind: read, or refused in our own words."""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import xarray as xr

from aqtopo.config import RunConfig
from aqtopo.data import open_store
from aqtopo.data.forecasts import open_forecasts
from aqtopo.data.grid import Grid
from aqtopo.data.inspection import summarize_store
from aqtopo.data.metadata import read_metadata
from aqtopo.data.prepare import caqra
from aqtopo.data.prepare.archives import Inventory
from aqtopo.data.prepare.days import DayMaker
from aqtopo.data.prepare.hourly import UnusableFileError, read_grid
from aqtopo.data.prepare.rasters import elevation
from aqtopo.data.prepare.regrid import Regridder
from aqtopo.data.schema import STATIC_DIMS
from aqtopo.data.shards import stored_checksums
from aqtopo.data.store import no_progress
from aqtopo.evaluation.results import read_table
from aqtopo.evaluation.stations import read_stations
from aqtopo.inference.weather import open_weather
from aqtopo.variables import STATIC_CHANNELS
from tests.changes import as_text
from tests.conftest import SaveUntrained, tiny_tree
from tests.damage import (  # noqa: F401  (the tests run here)
    FuzzTarget,
    KnownFault,
    Read,
    test_changed_files,
    test_known_faults,
    test_other_kinds_of_files,
)
from tests.data.forecast_files import perfect_forecasts
from tests.data.prepare.raw import hourly_file, lambert_grid, write_archive
from tests.data.prepare.test_rasters import GRID, write_netcdf, write_tiff

DAY = np.datetime64("2013-01-01", "D")
INITS = np.array(["2018-01-02", "2018-01-03"], dtype="M8[h]")
WEATHER = ("u", "temp")


def metadata_of_a_store(folder: Path, store: Path, _: SaveUntrained) -> FuzzTarget:
    copy = Path(shutil.copytree(store, folder / "store.zarr"))
    return FuzzTarget(sorted(copy.rglob("zarr.json")), lambda: _open(copy))


def chunks_of_a_store(folder: Path, store: Path, _: SaveUntrained) -> FuzzTarget:
    copy = Path(shutil.copytree(store, folder / "store.zarr"))
    right = [open_store(store).read(hour) for hour in (0, 12, 23)]

    def read() -> object:
        _open(copy)
        opened = open_store(copy)
        np.testing.assert_array_equal([opened.read(hour) for hour in (0, 12, 23)], right)
        return right

    small = [path for path in copy.rglob("c/**/*") if path.is_file() and "fields" not in path.parts]
    return FuzzTarget([copy / "fields" / "c" / "0" / "0" / "0" / "0", *sorted(small)], read)


def _open(path: Path) -> object:
    opened = open_store(path, deadline_s=5.0)  # the wait for a pipe
    read_metadata(path)
    stored_checksums(path)
    return summarize_store(opened), opened.read(0)


def _forecasts(folder: Path, store: Path, name: str, **options: Any) -> Path:
    dataset = perfect_forecasts(open_store(store), ("pm25", *WEATHER), INITS).drop_vars("time")
    if name.endswith(".zarr"):
        dataset.to_zarr(folder / name, consolidated=False, **options)
    else:
        dataset.to_netcdf(folder / name, **options)
    return folder / name


def _against(path: Path, store: Path) -> Read:
    opened = open_store(store)

    def read() -> object:
        forecasts = open_forecasts(path, opened, ("pm25",), (12, 24))
        return forecasts.at(forecasts.init_times)

    return read


def netcdf4(folder: Path, store: Path, _: SaveUntrained) -> FuzzTarget:
    path = _forecasts(folder, store, "other.nc")
    return FuzzTarget([path], _against(path, store))


def classic_netcdf(folder: Path, store: Path, _: SaveUntrained) -> FuzzTarget:
    path = _forecasts(folder, store, "other.nc", format="NETCDF3_64BIT")
    config = tiny_tree(store, folder / "run")
    config["data"] |= {"weather_at_horizons": list(WEATHER), "horizons": [12, 24]}
    opened, data = open_store(store), RunConfig.model_validate(config).data
    return FuzzTarget([path], lambda: open_weather(path, opened, data).at(INITS))


def zarr_2(folder: Path, store: Path, _: SaveUntrained) -> FuzzTarget:
    path = _forecasts(folder, store, "other.zarr", zarr_format=2)  # with Blosc
    return FuzzTarget(sorted(each for each in path.rglob("*") if each.is_file()), _against(path, store))


def zarr_2_zlib(folder: Path, store: Path, _: SaveUntrained) -> FuzzTarget:
    names = ("pm25", *WEATHER, "init_time", "lead_time", "lat", "lon")
    encoding = {name: {"compressors": (numcodecs.Zlib(),)} for name in names}
    path = _forecasts(folder, store, "other.zarr", zarr_format=2, encoding=encoding)
    return FuzzTarget(sorted(each for each in path.rglob("*") if each.is_file()), _against(path, store))


def zarr_3(folder: Path, store: Path, _: SaveUntrained) -> FuzzTarget:
    path = _forecasts(folder, store, "other.zarr", zarr_format=3)
    return FuzzTarget(sorted(each for each in path.rglob("*") if each.is_file()), _against(path, store))


def elevation_netcdf(folder: Path, _: Path, __: SaveUntrained) -> FuzzTarget:
    path = write_netcdf(folder / "z.nc")
    return FuzzTarget([path], lambda: elevation(path, GRID))


def elevation_tiff(folder: Path, _: Path, __: SaveUntrained) -> FuzzTarget:
    path = write_tiff(folder / "z.tif")
    return FuzzTarget([path], lambda: elevation(path, GRID))


def stations(folder: Path, store: Path, _: SaveUntrained) -> FuzzTarget:
    path, opened = folder / "stations.csv", open_store(store)
    places = (("a", 100), ("b", 110))
    rows = [f"{n},30.5,{lon},2018-01-02T0{h}:00,pm25,{40 + h}" for n, lon in places for h in range(8)]
    path.write_text("\n".join(["id,lat,lon,time,pollutant,value", *rows, ""]), encoding="utf-8")
    return FuzzTarget([path], lambda: read_stations(path, opened, ("pm25",)))


def _maker(source: Path, parts: Path) -> DayMaker:
    lat, lon = lambert_grid(5, 6, 400e3)
    content = hourly_file(lat, lon, 0)
    grid = read_grid(content)
    regridder = Regridder.between(grid.lat, grid.lon, Grid((4, 4), (30.0, 38.0), (98.0, 108.0)))
    parts.mkdir(exist_ok=True)
    return DayMaker(parts, Inventory.of(source), 0, grid, regridder, turn_wind=False)


def _archive(folder: Path, suffix: str) -> FuzzTarget:
    lat, lon = lambert_grid(5, 6, 400e3)
    source = folder / "source"
    source.mkdir()
    files = {f"day/CN-Reanalysis20130101{hour:02}.nc": hourly_file(lat, lon, hour) for hour in range(2)}
    path = source / f"CN-Reanalysis20130101{suffix}"
    if suffix == ".nc":
        path = source / "CN-Reanalysis2013010100.nc"
        path.write_bytes(next(iter(files.values())))
    else:
        write_archive(path, files)

    maker, hours = _maker(source, folder / "parts"), np.array(["2013-01-01T00", "2013-01-01T01"], "M8[h]")

    def read() -> object:
        inventory = Inventory.of(source)
        for file in inventory.read(hours):
            with suppress(UnusableFileError):
                assert file.content is None or read_grid(file.content)
        return replace(maker, inventory=inventory).make(DAY)

    return FuzzTarget([path], read)


def hourly_netcdf(folder: Path, _: Path, __: SaveUntrained) -> FuzzTarget:
    return _archive(folder, ".nc")


def zip_archive(folder: Path, _: Path, __: SaveUntrained) -> FuzzTarget:
    return _archive(folder, ".zip")


def tar_archive(folder: Path, _: Path, __: SaveUntrained) -> FuzzTarget:
    return _archive(folder, ".tar")


def gzip_archive(folder: Path, _: Path, __: SaveUntrained) -> FuzzTarget:
    return _archive(folder, ".tar.gz")


def parts_of_prepare(folder: Path, _: Path, __: SaveUntrained) -> FuzzTarget:
    _archive(folder, ".nc")
    grid = Grid((4, 4), (30.0, 38.0), (98.0, 108.0))
    recipe = caqra.Recipe(folder / "source", folder / "out.zarr", (2013,), (2013,), "UTC", grid)
    recipe.parts.mkdir()
    caqra._check_part_settings(recipe)
    _maker(folder / "source", recipe.parts).make(DAY)
    static = xr.DataArray(
        np.zeros((len(STATIC_CHANNELS), 4, 4), np.float32), dims=STATIC_DIMS,
        coords={"static_channel": list(STATIC_CHANNELS)},
    )  # fmt: skip

    def read() -> object:
        caqra._check_part_settings(recipe)
        return list(caqra._chunks(recipe, static, caqra._reports(recipe), no_progress))

    return FuzzTarget(sorted(path for path in recipe.parts.iterdir() if path.stat().st_size), read)


def scores(folder: Path, store: Path, _: SaveUntrained) -> FuzzTarget:
    by_day = xr.Dataset(
        {"squared": (("forecast", "day"), np.ones((2, 3)))},
        coords={"forecast": np.array(["model", "b"], object), "day": np.arange(3)},
    )
    xr.DataTree.from_dict({"by_day": by_day}).to_zarr(
        folder / "scores.zarr", zarr_format=3, consolidated=False
    )
    return FuzzTarget(
        sorted(path for path in (folder / "scores.zarr").rglob("*") if path.is_file()),
        lambda: read_table(folder, "by_day"),
    )


TARGETS: dict[str, Callable[[Path, Path, SaveUntrained], FuzzTarget]] = {
    target.__name__: target
    for target in (
        metadata_of_a_store, chunks_of_a_store, netcdf4, classic_netcdf, zarr_2, zarr_2_zlib, zarr_3,
        elevation_netcdf, elevation_tiff, stations, hourly_netcdf, zip_archive, tar_archive, gzip_archive,
        parts_of_prepare, scores,
    )
}  # fmt: skip


FIXTURES = ("tiny_store", "save_untrained")


def _cut(content: bytes) -> bytes:
    return content[:-4]


def _at(place: int, new: bytes) -> Callable[[bytes], bytes]:
    return lambda content: content[:place] + new + content[place + len(new) :]


def _with(**changes: Any) -> Callable[[bytes], bytes]:
    return lambda content: as_text(json.loads(content) | changes)


KNOWN_FAULTS: list[KnownFault] = [
    ("metadata_of_a_store", "channel/zarr.json", _with(shape=None)),
    ("metadata_of_a_store", "channel/zarr.json", _with(chunk_grid={"name": {}})),
    ("metadata_of_a_store", "time/zarr.json", _with(codecs=7)),
    ("metadata_of_a_store", "time/zarr.json", _with(shape=[2**26])),
    ("metadata_of_a_store", "store.zarr/zarr.json", lambda _: b"7"),
    ("chunks_of_a_store", "channel/c/0", _cut),
    ("chunks_of_a_store", "time/c/0", lambda _: b""),
    ("zarr_2", "lat/.zattrs", _with(standard_name={})),
    ("zarr_2", "lat/.zattrs", _with(standard_name=[[1], [1, 2]])),
    ("zarr_2", "lat/.zarray", _with(shape=[2**31], chunks=[1])),
    ("zarr_2", "pm25/0.0.0.0", _cut),
    ("zarr_3", "lat/zarr.json", _with(shape=[2**31])),
    ("parts_of_prepare", "recipe.json", lambda _: b"7"),
    ("parts_of_prepare", "recipe.json", _cut),
    ("parts_of_prepare", "2013-01-01.json", _with(hours=[0, 24])),
    ("parts_of_prepare", "2013-01-01.json", _with(hours=[0, 1])),
    ("parts_of_prepare", "2013-01-01.json", _cut),
    ("parts_of_prepare", "2013-01-01.npy", lambda _: b""),
    ("parts_of_prepare", "2013-01-01.npy", _at(10, b"(((")),
    ("scores", "squared/zarr.json", _with(shape=[2, 2**30], dimension_names=["forecast", "x"])),
    ("scores", "scores.zarr/zarr.json", _with(attributes=[])),
    ("scores", "forecast/c/0", lambda content: content.replace(b"\x02\0\0\0\x05", b"\0\0\0\x40\x05")),
    ("stations", "stations.csv", lambda _: b"x" * 2**21),
    ("stations", "stations.csv", lambda content: content.replace(b"2018-01-02T03", b"2418-01-02T03")),
]
