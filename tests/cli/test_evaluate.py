"""`aqtopo evaluate` as typed."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import xarray as xr

from aqtopo.config import RunConfig
from aqtopo.data import write_statistics, write_store
from aqtopo.evaluation import evaluate
from aqtopo.evaluation.points import FORECASTS
from aqtopo.evaluation.results import SCORES_FILE, read_score_file
from aqtopo.inference.load import predict

Command = Callable[..., Any]


def test_table_scores_and_progress(aqtopo: Command, untrained_run: Path) -> None:
    ended = aqtopo("evaluate", untrained_run)
    assert ended.code == 0
    assert "tiny (epoch00-step000007-val0.5000) on test 2018" in ended.out
    assert sum(" h " in line for line in ended.out.splitlines()) == 24
    assert "Of 24 pollutant-horizon pairs the model has a lower RMSE than persistence in" in ended.out
    assert str(untrained_run / SCORES_FILE) in ended.out
    assert read_score_file(untrained_run).split == "test"
    for what in ("240/240 hours of climatology, ", "6/6 forecasts, "):
        (line,) = [line for line in ended.err.splitlines() if line.startswith(what)]
        assert line.endswith("/s, 00:00 left")


def test_scores_are_a_tidy_table(aqtopo: Command, untrained_run: Path) -> None:
    assert aqtopo("evaluate", untrained_run).code == 0
    table = pd.read_csv(untrained_run / "scores.csv")
    assert list(table) == ["pollutant", "lead_time", "score", "forecast", "value", "units", "count"]
    assert len(table) == 24 * 4 * len(FORECASTS)
    entry = read_score_file(untrained_run).scores[0]
    chosen = table.query("pollutant == @entry.pollutant and lead_time == @entry.horizon_h")
    assert set(chosen["units"]) == {entry.units}
    assert set(chosen["count"]) == {entry.count}
    values = chosen.set_index(["forecast", "score"])["value"]
    for name in FORECASTS:
        scores = entry.__pydantic_extra__[name].model_dump()
        expected = {score: float("nan") if value is None else value for score, value in scores.items()}
        assert values[name].to_dict() == pytest.approx(expected, nan_ok=True)


def test_json_stdout_holds_only_the_score_file(aqtopo: Command, untrained_run: Path) -> None:
    ended = aqtopo("evaluate", untrained_run, "--json", "--split", "validation", "--tag", "last")
    content = json.loads(ended.out)
    assert content == json.loads((untrained_run / SCORES_FILE).read_text(encoding="utf-8"))
    assert (content["split"], content["years"]) == ("validation", [2017])
    assert len(content["scores"]) == content["summary"]["pairs"] == 24


def test_output_of_libraries_stays_out_of_the_json(
    aqtopo: Command, untrained_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chatty(*given: Any) -> Any:
        sys.stdout.write("chatter")
        return predict(*given)

    monkeypatch.setattr(evaluate, "predict", chatty)
    ended = aqtopo("evaluate", untrained_run, "--json")
    assert "chatter" in ended.err
    assert json.loads(ended.out)["run"] == "tiny"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tag", "epoch99"], "no saved state 'epoch99'"),
        (["--split", "train"], "train"),
        (["--detail", "station"], "needs observations"),
        (["--region", "nowhere"], "not of the form NAME=SOUTH:NORTH,WEST:EAST"),
        (["--stations", "gone.csv"], "cannot be read"),
        (["--against", "gone.nc"], "there is no such file"),
        (["--against", "gone*.nc"], "'gone*.nc' matches no file"),
        (["--output", "/proc/self/fdinfo"], "/proc/self/fdinfo cannot be written"),
    ],
)
def test_bad_options_are_refused_before_writing(
    aqtopo: Command, untrained_run: Path, options: list[str], message: str
) -> None:
    complaint = aqtopo("evaluate", untrained_run, *options).complaint
    assert message in complaint
    assert "hours of climatology" not in complaint
    assert not (untrained_run / SCORES_FILE).exists()


def test_requested_details_are_printed(aqtopo: Command, untrained_run: Path) -> None:
    details = ("season", "hour", "area", "spectra", "exceedances")
    ended = aqtopo(
        "evaluate",
        untrained_run,
        *(word for detail in details for word in ("--detail", detail)),
        *("--region", "east=20:48,110:134"),
    )
    assert ended.code == 0, ended.err
    lines = [line.split() for line in ended.out.splitlines() if line.lstrip().startswith("PM2.5")]
    labels = [line[1] for line in lines[4:]]
    assert labels[:8] == ["DJF", "0", "12", "all", "plains", "slopes", "mountains", "plateau"]
    assert labels[8] == "east"
    assert "smoothness: power of the model" in ended.out
    assert "No day has forecasts for 20 of its hours" in ended.out


def test_stations_and_another_model_are_scored_in_one_command(
    aqtopo: Command, untrained_run: Path, tmp_path: Path
) -> None:
    csv, other = tmp_path / "stations.csv", tmp_path / "cams.nc"
    csv.write_text("id,lat,lon,time,pollutant,value\nA,30,100,2018-01-04T00,pm25,40\n", encoding="utf-8")
    assert aqtopo("forecast", untrained_run, other, "--init", "2018-01-03T00").code == 0
    ended = aqtopo(
        "evaluate",
        untrained_run,
        "--stations",
        csv,
        "--against",
        other,
        "--detail",
        "station",
        "--every",
        "12",
    )
    assert ended.code == 0, ended.err
    assert "than persistence in" in ended.out
    assert "cams in 0, and than all in 0" in ended.out
    written = {path.name for path in untrained_run.iterdir() if path.name.startswith("scores")}
    assert written == {f"scores_against_cams{end}" for end in (".json", ".csv", ".zarr", "_stations.csv")}
    lines = (untrained_run / "scores_against_cams_stations.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + len(FORECASTS) + 1
    assert lines[1].startswith("A,30.0,100.0,pm25,ug m-3,24,")


def test_directory_without_a_run_is_refused(aqtopo: Command, tmp_path: Path) -> None:
    assert "is not a run directory" in aqtopo("evaluate", tmp_path).complaint


def test_removed_store_is_named(aqtopo: Command, untrained_run: Path, tmp_path: Path) -> None:
    config = json.loads((untrained_run / "config.json").read_text(encoding="utf-8"))
    config["data"]["store"] = str(tmp_path / "gone.zarr")
    (untrained_run / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert "gone.zarr" in aqtopo("evaluate", untrained_run).complaint


def test_too_few_hours_for_the_regressions_are_refused(
    aqtopo: Command,
    tiny_dataset: xr.Dataset,
    tiny_config: Callable[..., RunConfig],
    save_untrained: Callable[..., Path],
    tmp_path: Path,
) -> None:
    store = tmp_path / "short.zarr"
    write_store(tiny_dataset.sel(time=tiny_dataset["time"].dt.day <= 8), store)
    write_statistics(store, [2016])
    run = save_untrained(tiny_config(data={"store": str(store)}))
    complaint = aqtopo("evaluate", run).complaint
    assert "with 40 predictors needs at least 120 hours, and the training years 2016 have 96" in complaint
    assert "Score the run on a store with more hours of its training years." in complaint
    assert "hours of climatology" not in complaint
    assert not (run / SCORES_FILE).exists()


def test_diverged_weights_give_exit_code_1(
    aqtopo: Command, tiny_config: Callable[..., RunConfig], save_untrained: Callable[..., Path]
) -> None:
    run = save_untrained(tiny_config(), factor=float("nan"))
    ended = aqtopo("evaluate", run)
    assert (ended.code, ended.out) == (1, "")
    assert "not finite" in ended.err
    assert not (run / SCORES_FILE).exists()
