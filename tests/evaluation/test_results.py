import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from aqtopo.evaluation.points import BASELINES, FORECASTS, WEIGHTINGS
from aqtopo.evaluation.results import (
    SCORES_FILE,
    read_score_file,
    read_table,
    scores_from_record,
    write_scores,
    write_tables,
)
from aqtopo.variables import VARIABLES, variables_as_json

from .made import scores_of_batches

Content = dict[str, Any]

POLLUTANTS, HORIZONS_H = ("pm25", "co"), (12, 96)


@pytest.fixture
def scores() -> xr.Dataset:
    """Made scores in which nothing was counted for carbon monoxide at 96 h."""
    generator = np.random.default_rng(0)
    shape = (3, len(HORIZONS_H), len(POLLUTANTS), 4, 5)
    truth = generator.gamma(2.0, 20.0, shape)
    truth[:, 1, 1] = np.nan
    forecasts = {name: generator.gamma(2.0, 20.0, shape) for name in FORECASTS}
    batch = forecasts, truth, np.ones(shape, dtype=np.bool_)
    made = scores_of_batches(batch, pollutants=POLLUTANTS, horizons_h=HORIZONS_H).assign_coords(
        units=("pollutant", ["ug m-3"] * 2)
    )
    described = variables_as_json(VARIABLES[name] for name in POLLUTANTS)
    head = {"initialisations": 3, "first_init": "2018-02-27T06", "last_init": "2018-02-28T12"}
    head |= {"weighting": WEIGHTINGS["none"]}
    return made.assign_attrs(
        run="made", tag="t", split="test", years=[2018], versions={"numpy": "2"}, variables=described, **head
    )


def test_what_is_written_is_read_back(scores: xr.Dataset, tmp_path: Path) -> None:
    write_scores(scores, tmp_path)
    read = scores_from_record(read_score_file(tmp_path))
    xr.testing.assert_allclose(read, scores, rtol=1e-15)
    assert read.attrs == scores.attrs
    assert [path.name for path in tmp_path.iterdir()] == [SCORES_FILE]


def test_the_file_can_be_read_without_aqtopo(scores: xr.Dataset, tmp_path: Path) -> None:
    content = json.loads(write_scores(scores, tmp_path).read_text(encoding="utf-8"))
    assert (content["run"], content["split"], content["years"]) == ("made", "test", [2018])
    assert [(entry["pollutant"], entry["horizon_h"]) for entry in content["scores"]] == [
        (pollutant, horizon) for pollutant in POLLUTANTS for horizon in HORIZONS_H
    ]
    first = content["scores"][0]
    assert first["units"] == "ug m-3"
    assert first["count"] == 60
    pair = scores.sel(pollutant="pm25", horizon=12)
    assert first["model"]["rmse"] == float(pair["rmse"].sel(forecast="model"))
    assert first["persistence"]["mae"] == float(pair["mae"].sel(forecast="persistence"))
    assert first["climatology"]["bias"] == float(pair["bias"].sel(forecast="climatology"))
    assert first["skill"]["climatology"] == float(pair["skill"].sel(reference="climatology"))


def test_missing_values_are_null_in_valid_json(scores: xr.Dataset, tmp_path: Path) -> None:
    text = write_scores(scores, tmp_path).read_text(encoding="utf-8")
    last = json.loads(text, parse_constant=pytest.fail)["scores"][-1]
    assert last["count"] == 0
    assert last["model"] == {"rmse": None, "mae": None, "bias": None, "acc": None}
    assert last["skill"] == dict.fromkeys(BASELINES)


def test_the_summary_counts_what_the_model_beats(scores: xr.Dataset, tmp_path: Path) -> None:
    summary = json.loads(write_scores(scores, tmp_path).read_text(encoding="utf-8"))["summary"]
    rmse = scores["rmse"]
    better = {name: rmse[0].values < rmse.sel(forecast=name).values for name in BASELINES}
    assert summary == {
        "pairs": 3,
        **{f"model_beats_{name}": int(wins.sum()) for name, wins in better.items()},
        "model_beats_all": int(np.logical_and.reduce(list(better.values())).sum()),
        "squared_error": {},
    }


def damaged(content: Content, path: str, value: object = None) -> str:
    """The file with another value at a path such as `scores.0.units`, or without that key."""
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place: Any = content
    for part in way:
        place = place[part]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return json.dumps(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda _: "{", "scores.json is not JSON"),
        (lambda content: json.dumps(content)[:-40], "scores.json is not JSON"),
        (lambda _: "[]", "does not hold one JSON object"),
        (lambda _: "{}", "format_version: missing"),
        (lambda content: damaged(content, "format_version", 99), "format_version = 99: must be 2"),
        (lambda content: damaged(content, "tag"), "tag: missing"),
        (lambda content: damaged(content, "last_init", "once"), 'last_init = "once": must be a time'),
        (lambda content: damaged(content, "scores.1.pollutant", "smog"), '"smog": is an undescribed'),
        (lambda content: damaged(content, "scores.1.pollutant", "../x"), '"../x": must match'),
        (lambda content: damaged(content, "variables.0.units", 3), "variables[0].units = 3: must be"),
        (lambda content: damaged(content, "scores.0.model"), "scores[0].model = null: must be given"),
        (lambda content: damaged(content, "scores.0.model.rmse", "5"), 'scores[0].model.rmse = "5": must be'),
        (lambda content: damaged(content, "scores.0.skill", [1]), "scores[0].skill = [1]: must be an object"),
        (lambda content: damaged(content, "scores.0"), "scores = 3: must have every pollutant at every"),
        (lambda content: damaged(content, "scores", []), "scores = []: must hold at least 1 item"),
        (lambda content: damaged(content, "strata.season.DJF.0"), "strata.season.DJF = 3: must have every"),
    ],
)
def test_a_damaged_file_names_what_is_wrong_and_the_remedy(
    scores: xr.Dataset, tmp_path: Path, damage: Callable[[Content], str], message: str
) -> None:
    path = write_scores(scores, tmp_path, {"season": scores.expand_dims(season=["DJF"])})
    path.write_text(damage(json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        scores_from_record(read_score_file(tmp_path))
    assert str(caught.value).endswith(f"Score the run again with `aqtopo evaluate {tmp_path}`.")


def test_an_exceedance_without_all_its_forecasts_is_named(scores: xr.Dataset, tmp_path: Path) -> None:
    outcomes = {"hits": 1, "misses": 0, "false_alarms": 0, "correct_negatives": 0}
    record = {"pollutant": "pm25", "horizon": 12, "limit": 75.0, **outcomes}
    path = write_scores(scores, tmp_path)
    content = json.loads(path.read_text(encoding="utf-8")) | {
        "exceedances": [{"forecast": "model", "csi": None, **record}]
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=f"exceedances = 1: must have each of {', '.join(FORECASTS)}"):
        scores_from_record(read_score_file(tmp_path))


def test_a_missing_file_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"scores\.json is missing\. Score the run with `aqtopo evaluate"):
        scores_from_record(read_score_file(tmp_path))


TABLE = xr.Dataset({"squared": (("day", "area"), np.arange(600.0).reshape(20, 30))})


def chunk(group: Path) -> Path:
    return next(path for path in (group / "squared" / "c").rglob("*") if path.is_file())


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


@pytest.mark.parametrize(
    "damage",
    [
        lambda group: cut_short(group / "zarr.json"),
        lambda group: (group / "squared" / "zarr.json").write_text("[]", encoding="utf-8"),
        lambda group: cut_short(chunk(group)),
    ],
    ids=["group", "array", "chunk"],
)
def test_a_damaged_table_is_named_with_the_remedy(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    damage(write_tables({"by_day": TABLE}, tmp_path) / "by_day")
    with pytest.raises(ValueError, match=r"by_day of .+scores\.zarr cannot be read .*`aqtopo evaluate"):
        read_table(tmp_path, "by_day")


def test_a_missing_table_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"scores\.zarr has no table by_day\. Score the run with `aqtopo"):
        read_table(tmp_path, "by_day")
    write_tables({"by_day": TABLE}, tmp_path)
    with pytest.raises(ValueError, match="has no table stations"):
        read_table(tmp_path, "stations")
