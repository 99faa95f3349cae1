import json
import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aqtopo.cli.main import app
from aqtopo.data import open_store

runner = CliRunner()


@pytest.fixture
def store(tiny_store: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "copy.zarr"
    shutil.copytree(tiny_store, copy)
    return copy


def test_info_prints_grid_hours_gaps_and_source(tiny_store: Path) -> None:
    result = runner.invoke(app, ["data", "info", str(tiny_store)])
    assert result.exit_code == 0
    assert "8 x 16, latitude 20 to 48" in result.stdout
    assert "2016 (240 h), 2017 (240 h), 2018 (240 h)" in result.stdout
    assert "2016-01-11T00 to 2016-12-31T23 (8544 h)" in result.stdout
    assert "smooth waves made for tests (simulated)" in result.stdout
    assert "Statistics over 2016" in result.stdout


def test_info_prints_only_json_on_request(tiny_store: Path) -> None:
    result = runner.invoke(app, ["data", "info", str(tiny_store), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["digest"] == open_store(tiny_store).digest


def test_statistics_take_several_years_after_one_option(store: Path) -> None:
    result = runner.invoke(app, ["data", "statistics", str(store), "--years", "2016", "2018"])
    assert result.exit_code == 0
    assert "Statistics over 2016, 2018" in result.stdout
    assert open_store(store, years=[2016, 2018]).statistics_years == (2016, 2018)
    info = json.loads(runner.invoke(app, ["data", "info", str(store), "--json"]).stdout)
    assert (info["statistics_years"], info["further_statistics_years"]) == ([2016], [[2016, 2018]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "nowhere.zarr"], "There is no data store at nowhere.zarr"),
        (["statistics", "nowhere.zarr", "--years", "2016"], "There is no data store at nowhere.zarr"),
    ],
)
def test_missing_store_gives_exit_code_2(arguments: list[str], message: str) -> None:
    result = runner.invoke(app, ["data", *arguments])
    assert isinstance(result.exception, ValueError)
    assert message in str(result.exception)


def test_statistics_over_an_absent_year_are_refused(store: Path) -> None:
    result = runner.invoke(app, ["data", "statistics", str(store), "--years", "2030"])
    assert isinstance(result.exception, ValueError)
    assert "has no hours in 2030" in str(result.exception)
    assert open_store(store).statistics_years == (2016,)


@pytest.mark.parametrize("command", [["info"], ["check"], ["statistics", "--years", "2016"]])
def test_unresponsive_store_ends_each_command_at_its_deadline(store: Path, command: list[str]) -> None:
    stalled = store / "static" / "zarr.json"
    stalled.unlink()
    os.mkfifo(stalled)  # opening it waits for a writer, who never comes
    try:
        result = runner.invoke(app, ["data", *command, str(store), "--deadline", "0.2"])
    finally:
        os.close(os.open(stalled, os.O_RDWR | os.O_NONBLOCK))  # lets the thread that waits for it go
    assert isinstance(result.exception, TimeoutError)
    assert "did not answer for 0.2 s: its metadata is still not read" in str(result.exception)
    assert "a longer `--deadline`" in str(result.exception)


def test_check_lists_faults_and_gives_exit_code_1(tiny_store: Path, store: Path) -> None:
    good = runner.invoke(app, ["data", "check", str(tiny_store)])
    assert good.exit_code == 0
    assert "0 fault(s), 2 note(s)" in good.stdout
    assert runner.invoke(app, ["data", "check", "--strict", str(tiny_store)]).exit_code == 1
    (store / "fields" / "c" / "7" / "0" / "0" / "0").unlink()
    bad = runner.invoke(app, ["data", "check", str(store), "--json"])
    assert bad.exit_code == 1
    result = json.loads(bad.stdout)
    assert result["faults"] >= 1
    assert any("fields/c/7/0/0/0" in finding["text"] for finding in result["findings"])
