"""Raw files with all faults, made once for all tests."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from aqtopo.data.grid import Grid
from aqtopo.data.prepare.caqra import Recipe
from tests.data.prepare.raw import Values, day_files, hourly_file, lambert_grid, write_archive

DAYS = ("2013-01-01", "2013-01-02", "2013-01-03", "2013-01-04")


@pytest.fixture(scope="session")
def source_grid() -> tuple[Values, Values]:
    """Return a coarse Lambert grid, 24 x 32 cells of 120 km."""
    return lambert_grid(24, 32, 120e3)


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory, source_grid: tuple[Values, Values]) -> Path:
    """Four days of 2013: a zip, a tar.gz, a tar and unpacked files.

    2013-01-01 has no file for 05, a truncated one for 06, co in ug m-3 in 07, a gap of fill values in 08, of
    -9999 in 09 and of NaN in 11, and only NaN in 10; the archive of 2013-01-03 is truncated; 2013-01-04 has
    an hour twice.
    """
    folder, (lat, lon) = tmp_path_factory.mktemp("raw"), source_grid
    first = day_files(lat, lon, DAYS[0])
    names = list(first)
    del first[names[5]]
    first[names[6]] = first[names[6]][: len(first[names[6]]) // 2]
    first[names[7]] = hourly_file(lat, lon, 7, units={"co": "ug/m3"})
    first[names[8]] = hourly_file(lat, lon, 8, blank=(slice(8, 16), slice(10, 20)))
    first[names[9]] = hourly_file(lat, lon, 9, blank=(slice(8, 16), slice(10, 20)), sentinel=-9999.0)
    first[names[10]] = hourly_file(lat, lon, 10, blank=(slice(None), slice(None)), sentinel=np.nan)
    first[names[11]] = hourly_file(lat, lon, 11, blank=(slice(8, 16), slice(10, 20)), sentinel=np.nan)
    write_archive(folder / "CN-Reanalysis20130101.zip", first)
    write_archive(folder / "CN-Reanalysis20130102.tar.gz", day_files(lat, lon, DAYS[1]))
    broken = folder / "CN-Reanalysis20130103.tar"
    write_archive(broken, day_files(lat, lon, DAYS[2]))
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    (folder / "unpacked" / "again").mkdir(parents=True)
    for name, content in day_files(lat, lon, DAYS[3]).items():
        (folder / "unpacked" / Path(name).name).write_bytes(content)
    twice = "CN-Reanalysis2013010412.nc"
    (folder / "unpacked" / "again" / twice).write_bytes((folder / "unpacked" / twice).read_bytes())
    return folder


def make_recipe(raw: Path, out: Path, **changes: object) -> Recipe:
    """Return a recipe of the raw files' year on 8 x 12 cells in the middle of their grid."""
    settings: dict[str, object] = {
        "source": raw,
        "out": out,
        "years": (2013,),
        "train_years": (2013,),
        "time_zone": "UTC",
        "grid": Grid((8, 12), (27.0, 41.0), (94.0, 114.0)),
    }
    return Recipe(**(settings | changes))  # type: ignore[arg-type]


MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def recipe(raw: Path, tmp_path: Path) -> MakeRecipe:
    """Return `make_recipe` for a store in the test's folder."""
    out = tmp_path / "caqra.zarr"
    return lambda **changes: make_recipe(**{"raw": raw, "out": out} | changes)
