from pathlib import Path

from tests.cli.conftest import Command


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
