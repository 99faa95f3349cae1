import json
import os
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aqtopo.data import Store, open_store
from aqtopo.data.grid import Grid
from aqtopo.data.prepare.archives import Inventory, stamp_name
from aqtopo.data.prepare.caqra import Recipe, prepare
from aqtopo.data.prepare.days import hours_of, write_atomically
from aqtopo.variables import DYNAMIC_VARIABLES
from tests.data.prepare.conftest import DAYS, MakeRecipe, make_recipe
from tests.data.prepare.raw import (
    LEVELS,
    Values,
    day_files,
    field,
    hourly_file,
    lambert_grid,
    write_archive,
)

Prepared = tuple[Store, dict[str, Any]]


def expected(store: Store, hour_utc: int) -> np.ndarray:
    """Return the fields on the store's grid: linear in latitude and longitude, hence regridded exactly."""
    lat, lon = store.static["lat2d"].astype(float), store.static["lon2d"].astype(float)
    factors = {"co": 1e3}
    return np.stack([field(name, lat, lon, hour_utc) * factors.get(name, 1.0) for name in DYNAMIC_VARIABLES])


@pytest.fixture(scope="module")
def prepared(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    made = make_recipe(raw, tmp_path_factory.mktemp("prepared") / "caqra.zarr")
    quality = prepare(made)
    assert json.loads(made.report.read_text(encoding="utf-8")) == quality
    assert not made.parts.exists()
    return open_store(made.out), quality


def test_hours_have_their_time_and_units(prepared: Prepared) -> None:
    store, _ = prepared
    for day, hour in ((DAYS[0], 0), (DAYS[0], 7), (DAYS[1], 23), (DAYS[3], 12)):
        index = int(store.locate(np.array(f"{day}T{hour:02d}", "datetime64[h]")))
        np.testing.assert_allclose(store.read(index), expected(store, hour), rtol=1e-5)
    assert "CAQRA" in store.source
    assert not store.simulated
    assert store.statistics_years == (2013,)
    assert store.static["elevation"].max() > 1000


def test_faults_of_files_are_in_the_quality_report(prepared: Prepared) -> None:
    store, quality = prepared
    hours = quality["hours"]
    # Missing on the first day: no file (05), truncated (06), no value (10).
    assert hours["expected"] == 8760
    assert hours["present"] == store.times.size == 8760 - hours["missing"]
    assert hours["duplicated"] == 1
    assert quality["duplicated_hours"] == ["2013-01-04T12"]
    assert sorted(quality["unusable"]) == ["2013-01-01T06", "2013-01-01T10"]
    assert "CN-Reanalysis2013010106.nc" in quality["unusable"]["2013-01-01T06"]
    assert "has no value" in quality["unusable"]["2013-01-01T10"]
    assert {"first": "2013-01-01T05", "last": "2013-01-01T06", "hours": 2} in quality["missing_hours"]
    (damaged,) = quality["damaged_archives"]
    assert "CN-Reanalysis20130103.tar is damaged" in damaged
    third = np.sum(store.times.astype("datetime64[D]") == np.datetime64(DAYS[2]))
    assert 5 <= third < 24
    assert hours["present"] == 21 + 24 + third + 24
    assert quality["converted_hours"] == {"co: mg/m3": hours["present"] - 1}
    # The block of -9999 has 80 source cells; those of fill values and NaN say themselves that they have none.
    assert quality["out_of_range"] == dict.fromkeys(DYNAMIC_VARIABLES, 80)
    assert quality["time_zone"]["agrees"] is True
    assert quality["cells_outside_source"] == 0


def test_gaps_become_missing_cells_and_the_rest_is_unchanged(prepared: Prepared) -> None:
    store, quality = prepared
    for hour in (8, 9, 11):
        read = store.read(int(store.locate(np.array(f"{DAYS[0]}T{hour:02d}", "datetime64[h]"))))
        lost = np.isnan(read)
        assert 0 < lost.sum() < lost.size / 2
        np.testing.assert_allclose(read[~lost], expected(store, hour)[~lost], rtol=0.02)
    share = 3 * lost.sum() / (store.times.size * lost.size)
    assert quality["missing_share"] == {"2013-01": dict.fromkeys(DYNAMIC_VARIABLES, pytest.approx(share))}


def test_beijing_time_is_converted_to_utc(
    recipe: MakeRecipe, tmp_path: Path, source_grid: tuple[Values, Values]
) -> None:
    folder = tmp_path / "beijing"
    folder.mkdir()
    for day in ("2013-01-05", "2013-01-06"):
        name = f"CN-Reanalysis{day.replace('-', '')}.tar"
        write_archive(folder / name, day_files(*source_grid, day, zone_ahead=8))
    quality = prepare(recipe(source=folder, time_zone="Beijing"))
    store = open_store(tmp_path / "caqra.zarr")
    assert [str(store.times[0]), str(store.times[-1])] == ["2013-01-04T16", "2013-01-06T15"]
    np.testing.assert_allclose(store.read(3), expected(store, 19), rtol=1e-5)
    assert quality["time_zone"]["agrees"] is True


def test_a_wrong_time_zone_is_detected_from_the_daily_cycle(
    recipe: MakeRecipe, tmp_path: Path, source_grid: tuple[Values, Values]
) -> None:
    folder = tmp_path / "beijing"
    folder.mkdir()
    write_archive(folder / "CN-Reanalysis20130105.tar", day_files(*source_grid, "2013-01-05", zone_ahead=8))
    zone = prepare(recipe(source=folder, time_zone="UTC"))["time_zone"]
    assert zone["agrees"] is False
    assert (zone["warmest_hour"] - zone["expected"]) % 24 == pytest.approx(8.0, abs=0.2)


def test_days_of_another_recipe_are_refused(recipe: MakeRecipe) -> None:
    made = recipe()
    made.parts.mkdir()
    (made.parts / "recipe.json").write_text(
        json.dumps(made.part_settings | {"time_zone": "Beijing"}), encoding="utf-8"
    )
    with pytest.raises(ValueError, match=r"holds days made with another time_zone.*remove the folder"):
        prepare(made)


def test_days_without_their_recipe_are_refused(recipe: MakeRecipe) -> None:
    made = recipe(time_zone="Beijing")
    made.parts.mkdir()
    (made.parts / "2013-01-01.json").write_text(json.dumps({"day": "2013-01-01"}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"holds days without the settings they were made with\. Remove it"):
        prepare(made)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "source"
    made.mkdir()
    return made


@pytest.mark.parametrize("grids", [[0, 1], [0, 0, 0, 1], [1, 0]], ids=["hour 1", "next day", "hour 0"])
def test_files_on_different_grids_are_refused(
    recipe: MakeRecipe, folder: Path, source_grid: tuple[Values, Values], grids: list[int]
) -> None:
    lat, lon = source_grid
    for number, other in enumerate(grids):
        name = stamp_name(np.datetime64("2013-01-05T00", "h") + number * (24 if len(grids) > 2 else 1))
        (folder / name).write_bytes(hourly_file(lat + other / 10, lon, number))
    with pytest.raises(ValueError, match=r"another grid than the first file: lat2d differs, which is"):
        prepare(recipe(source=folder))


def test_an_archive_that_was_downloaded_again_is_read_again(
    recipe: MakeRecipe, folder: Path, source_grid: tuple[Values, Values], tmp_path: Path
) -> None:
    archive, other = folder / "CN-Reanalysis20130105.tar", folder / "CN-Reanalysis20130107.tar"
    write_archive(other, day_files(*source_grid, "2013-01-07"))
    write_archive(archive, day_files(*source_grid, "2013-01-05"))
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])

    def die(what: str, done: int, total: int) -> None:
        if what == "days of statistics":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(recipe(source=folder), die)
    kept = (tmp_path / "caqra.zarr.parts" / "2013-01-07.json").stat().st_mtime_ns
    archive.write_bytes(whole)
    with pytest.raises(ValueError, match=r"Files of 2013-01-05 in .* have changed since .*caqra.zarr"):
        prepare(recipe(source=folder))
    shutil.rmtree(tmp_path / "caqra.zarr")

    def stop(what: str, done: int, total: int) -> None:
        if what == "days stored":
            assert (tmp_path / "caqra.zarr.parts" / "2013-01-07.json").stat().st_mtime_ns == kept

    other.unlink()
    quality = prepare(recipe(source=folder), stop)
    assert quality["hours"]["present"] == 48
    assert quality["damaged_archives"] == []


def test_a_training_year_without_data_ends_with_a_report(
    recipe: MakeRecipe, folder: Path, source_grid: tuple[Values, Values]
) -> None:
    write_archive(folder / "CN-Reanalysis20130105.tar", day_files(*source_grid, "2013-01-05"))
    made = recipe(source=folder, years=(2013, 2014), train_years=(2013, 2014))
    with pytest.raises(ValueError, match=r"source has no file of 2014\. Leave it out of --years"):
        prepare(made)
    (folder / "CN-Reanalysis20140105.zip").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"no usable hour in 2014; .*quality.json gives the reasons"):
        prepare(made)
    report = json.loads(made.report.read_text(encoding="utf-8"))
    assert report["statistics"] is None
    assert "CN-Reanalysis20140105.zip is damaged" in report["damaged_archives"][0]
    quality = prepare(recipe(source=folder, years=(2013, 2014), train_years=(2013,)))
    assert quality["statistics"]["years"] == [2013]


def test_a_duplicate_with_other_values_is_named(
    recipe: MakeRecipe, folder: Path, source_grid: tuple[Values, Values]
) -> None:
    lat, lon = source_grid
    write_archive(folder / "CN-Reanalysis20130105.tar", day_files(lat, lon, "2013-01-05"))
    (folder / "CN-Reanalysis2013010503.nc").write_bytes(hourly_file(lat, lon, 9))
    (folder / "CN-Reanalysis2013010504.nc").write_bytes(hourly_file(lat, lon, 4))
    (folder / "CN-Reanalysis20130106.rar").touch()
    quality = prepare(recipe(source=folder))
    assert quality["duplicated_hours"] == ["2013-01-05T03", "2013-01-05T04"]
    unread, differs = quality["ignored"]
    assert "CN-Reanalysis20130106.rar is packed in a way that is not read" in unread
    assert "CN-Reanalysis2013010503.nc differs from" in differs


@pytest.mark.parametrize(
    "content", [np.zeros(2**18, np.float32), {"text": "x" * 2**20}], ids=["array", "JSON"]
)
def test_a_full_disk_is_named_with_the_file(full_disk: Path, content: Any) -> None:
    with pytest.raises(OSError, match=r"2013-01-05\.npy\.[0-9a-f]{8}\.tmp"):
        write_atomically(full_disk / "2013-01-05.npy", content)
    assert not list(full_disk.glob("*.tmp"))


def test_invalid_settings_are_refused(recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere does not exist"):
        prepare(recipe(source=tmp_path / "nowhere", out=tmp_path / "a.zarr"))
    with pytest.raises(ValueError, match=r"hourly file of 2014: no file found.*--time-zone"):
        prepare(recipe(years=(2014,), train_years=(2014,), out=tmp_path / "b.zarr"))
    (tmp_path / "c.zarr").mkdir()
    with pytest.raises(ValueError, match=r"exists already\. Choose another name"):
        prepare(recipe(out=tmp_path / "c.zarr"))
    with pytest.raises(ValueError, match="--train-years 2012 are not a subset of --years 2013"):
        recipe(train_years=(2012,))
    useless = tmp_path / "useless"
    useless.mkdir()
    for hour in range(24):
        (useless / f"CN-Reanalysis20130101{hour:02d}.nc").write_text("no", encoding="utf-8")
    with pytest.raises(ValueError, match=r"24 files are unusable.*is not a complete NetCDF file"):
        prepare(recipe(source=useless, out=tmp_path / "d.zarr"))


def test_a_complete_store_of_a_killed_command_is_not_remade(recipe: MakeRecipe, tmp_path: Path) -> None:
    made = recipe()

    def die(what: str, done: int, total: int) -> None:
        if what == "days of statistics":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(made, die)
    before = (made.out / "fields" / "c" / "0" / "0" / "0" / "0").stat().st_mtime_ns
    with pytest.raises(ValueError, match=r"already with years \[2013\], not \[2013, 2014\]\. Give the same"):
        prepare(recipe(years=(2013, 2014)))
    with pytest.raises(ValueError, match=r"with population_source none: 0 everywhere, not people\.tif"):
        prepare(recipe(population=tmp_path / "people.tif"))
    assert prepare(made)["statistics"]["years"] == [2013]
    assert (made.out / "fields" / "c" / "0" / "0" / "0" / "0").stat().st_mtime_ns == before


def test_folders_of_others_are_kept_and_own_remainders_removed(recipe: MakeRecipe) -> None:
    made = recipe()
    other = made.out.with_name(f"{made.out.name}.partial")
    other.mkdir()
    made.parts.mkdir()
    (made.parts / "letter.txt").write_text("dear", encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"caqra\.zarr\.parts holds letter\.txt, which `aqtopo prepare` did not"
    ):
        prepare(made)
    (made.parts / "letter.txt").unlink()

    def die(what: str, done: int, total: int) -> None:
        if what == "days stored":
            (made.parts / "store.0123abcd.tmp").mkdir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(made, die)
    assert [path.name for path in made.parts.glob("store*")] == ["store.0123abcd.tmp"]
    prepare(made)
    assert other.is_dir()
    assert not made.parts.exists()


@pytest.mark.parametrize("parts", [False, True], ids=["no folder", "an empty folder"])
def test_a_finished_store_and_its_report_are_not_changed(recipe: MakeRecipe, parts: bool) -> None:
    made = recipe()
    made.out.mkdir()
    made.report.write_text("what was found", encoding="utf-8")
    if parts:
        made.parts.mkdir()
    with pytest.raises(ValueError, match=r"exists already\. Choose another name"):
        prepare(made)
    assert made.report.read_text(encoding="utf-8") == "what was found"
    assert list(made.parts.glob("*")) == []


def peak_of_assembly(made: Recipe, days: int) -> int:
    """Return the peak memory of the assembly of so many finished days."""
    made.parts.mkdir()
    (made.parts / "recipe.json").write_text(json.dumps(made.part_settings), encoding="utf-8")
    hour, versions = (len(DYNAMIC_VARIABLES), *made.grid.shape), Inventory.of(made.source).versions
    levels = np.array([LEVELS[name] for name in DYNAMIC_VARIABLES], np.float32)[:, None, None]
    levels[DYNAMIC_VARIABLES.index("co")] *= 1e3
    for day in made.days[:days]:
        np.save(made.parts / f"{day}.npy", np.broadcast_to(levels, (24, *hour)))
        report = {"day": str(day), "hours": [*range(24)], "sources": versions(hours_of(day))}
        (made.parts / f"{day}.json").write_text(json.dumps(report), encoding="utf-8")
    tracemalloc.start()
    prepare(made)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert open_store(made.out).times.size == 24 * days
    return peak


def test_memory_does_not_grow_with_the_days(recipe: MakeRecipe, tmp_path: Path) -> None:
    grid = Grid((32, 64), (27.0, 41.0), (94.0, 114.0))
    few = peak_of_assembly(recipe(grid=grid, out=tmp_path / "few.zarr"), 8)
    many = peak_of_assembly(recipe(grid=grid, out=tmp_path / "many.zarr"), 16)
    day = 24 * len(DYNAMIC_VARIABLES) * 32 * 64 * 4
    assert few > 4 * day  # a block is held, so a day would show
    assert many < few + day


def test_only_one_command_prepares_a_store(recipe: MakeRecipe) -> None:
    import fcntl

    made = recipe()
    made.parts.mkdir()
    with (made.parts / "lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="Another process is preparing"):
            prepare(made)


def test_free_space_is_checked_for_existing_days_only(
    recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Four of the year's 365 days have files. Each needs its room twice: as a part, and in the store.
    needed = 2 * 4 * 24 * len(DYNAMIC_VARIABLES) * 8 * 12 * 4
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    with pytest.raises(ValueError, match=r"the part files and the store need up to 0\.\d+ GB"):
        prepare(recipe())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed))
    assert prepare(recipe())["hours"]["present"] > 72


@pytest.mark.slow
def test_a_day_on_the_true_grid(recipe: MakeRecipe, tmp_path: Path) -> None:
    lat, lon = lambert_grid(339, 432, 15e3)
    folder = tmp_path / "true"
    folder.mkdir()
    content, start = hourly_file(lat, lon, 5), np.datetime64("2013-01-01T00")
    names = [stamp_name(start + np.timedelta64(hour, "h")) for hour in range(24)]
    write_archive(folder / "CN-Reanalysis20130101.tar", dict.fromkeys(names, content))
    full = Grid((128, 256), (17.0, 49.0), (72.0, 136.0))
    quality = prepare(recipe(source=folder, grid=full, workers=os.cpu_count()))
    store = open_store(tmp_path / "caqra.zarr")
    assert store.times.size == 24
    inside = np.isfinite(store.read(5)[0])
    assert 0.98 < inside.mean() < 1.0
    assert quality["cells_outside_source"] == int((~inside).sum())
    np.testing.assert_array_equal(inside, store.static["mask"] > 0)
    edge = np.abs(store.read(5) / expected(store, 5) - 1)[:, inside]
    assert edge.max() < 1e-3
    assert np.median(edge) < 1e-6
