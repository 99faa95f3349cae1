from pathlib import Path

from tests.cli.conftest import Command
from tests.data.prepare.raw import hourly_file, lambert_grid


def test_time_zone_and_population_are_required(aqtopo: Command, tmp_path: Path) -> None:
    ended = aqtopo("prepare", "caqra", tmp_path, tmp_path / "out.zarr", "--years", "2013")
    assert ended.code == 2
    assert "--time-zone" in ended.err


def test_empty_folder_gives_exit_code_2(aqtopo: Command, tmp_path: Path) -> None:
    ended = aqtopo(
        "prepare", "caqra", tmp_path, tmp_path / "out.zarr", "--years", "2013", "2014",
        "--time-zone", "UTC", "--population", "none",
    )  # fmt: skip
    assert "holds neither CN-ReanalysisYYYYMMDDHH.nc files nor archives" in ended.complaint


def test_mostly_unusable_files_give_exit_code_1(aqtopo: Command, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    lat, lon = lambert_grid(24, 32, 120e3)
    (tmp_path / "raw" / "CN-Reanalysis2013010500.nc").write_bytes(hourly_file(lat, lon, 0))
    for hour in ("01", "02"):
        (tmp_path / "raw" / f"CN-Reanalysis20130105{hour}.nc").write_bytes(b"<html>")
    ended = aqtopo(
        "prepare", "caqra", tmp_path / "raw", tmp_path / "out.zarr", "--years", "2013", "--time-zone", "UTC",
        "--population", "none", "--grid", "8x12", "--lat", 27, 41, "--lon", 94, 114, "--workers", 1,
    )  # fmt: skip
    assert ended.code == 1
    assert "most hourly files are unusable" in ended.err
    assert "1 of 8760 hours" in ended.out
