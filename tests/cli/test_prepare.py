from pathlib import Path

from tests.cli.conftest import Command


def test_a_time_zone_and_a_population_must_be_named(aqtopo: Command, tmp_path: Path) -> None:
    ended = aqtopo("prepare", "caqra", tmp_path, tmp_path / "out.zarr", "--years", "2013")
    assert ended.code == 2
    assert "--time-zone" in ended.err


def test_an_empty_folder_is_an_error_of_the_user(aqtopo: Command, tmp_path: Path) -> None:
    ended = aqtopo(
        "prepare", "caqra", tmp_path, tmp_path / "out.zarr", "--years", "2013", "2014",
        "--time-zone", "UTC", "--population", "none",
    )  # fmt: skip
    assert "holds neither CN-ReanalysisYYYYMMDDHH.nc files nor archives" in ended.complaint
