"""`scores.json`, written and read back."""

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from aqtopo.evaluation.cases import FORECASTS
from aqtopo.evaluation.score_file import SCORES_FILE, read_scores, write_scores

from .made import scores_of_batches

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
    return made.assign_attrs(run="made", tag="t", split="test", years=[2018], versions={"numpy": "2"})


def test_what_is_written_is_read_back(scores: xr.Dataset, tmp_path: Path) -> None:
    write_scores(scores, tmp_path)
    read = read_scores(tmp_path)
    xr.testing.assert_allclose(read, scores, rtol=1e-15)
    assert read.attrs == scores.attrs
    assert [path.name for path in tmp_path.iterdir()] == [SCORES_FILE]


def test_the_file_can_be_read_without_aqtopo(scores: xr.Dataset, tmp_path: Path) -> None:
    content = json.loads(write_scores(scores, tmp_path).read_text())
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


def test_what_has_no_value_is_null_in_valid_json(scores: xr.Dataset, tmp_path: Path) -> None:
    text = write_scores(scores, tmp_path).read_text()
    last = json.loads(text, parse_constant=pytest.fail)["scores"][-1]
    assert last["count"] == 0
    assert last["model"] == {"rmse": None, "mae": None, "bias": None, "acc": None}
    assert last["skill"] == {"persistence": None, "climatology": None}


def test_the_summary_counts_what_the_model_beats(scores: xr.Dataset, tmp_path: Path) -> None:
    summary = json.loads(write_scores(scores, tmp_path).read_text())["summary"]
    rmse = scores["rmse"]
    better = {name: rmse[0] < rmse.sel(forecast=name) for name in ("persistence", "climatology")}
    assert summary == {
        "pairs": 3,
        "model_beats_persistence": int(better["persistence"].sum()),
        "model_beats_climatology": int(better["climatology"].sum()),
        "model_beats_all": int((better["persistence"].values & better["climatology"].values).sum()),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is missing. Score the run with `aqtopo evaluate"),
        ("{", "is not JSON"),
        ("[]", "format version None"),
        ('{"format_version": 99}', "format version 99"),
        ('{"format_version": 2, "scores": [{"pollutant": "smog"}]}', "does not know: smog"),
    ],
)
def test_a_file_that_cannot_be_used_names_the_remedy(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / SCORES_FILE).write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_scores(tmp_path)
    assert "aqtopo evaluate" in str(caught.value)
