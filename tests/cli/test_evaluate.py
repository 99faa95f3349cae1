"""`aqtopo evaluate` as typed."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aqtopo.config import RunConfig
from aqtopo.evaluation import evaluate
from aqtopo.evaluation.predict import predict
from aqtopo.evaluation.score_file import SCORES_FILE, read_scores

Command = Callable[..., Any]


def test_it_prints_the_table_and_writes_the_scores(aqtopo: Command, untrained_run: Path) -> None:
    ended = aqtopo("evaluate", untrained_run)
    assert ended.code == 0
    assert "tiny (epoch00-step000007-val0.5000) on test 2018" in ended.out
    assert sum(" h " in line for line in ended.out.splitlines()) == 24
    assert "Of 24 pollutant-horizon pairs the model has a lower RMSE than persistence in" in ended.out
    assert str(untrained_run / SCORES_FILE) in ended.out
    assert read_scores(untrained_run).attrs["split"] == "test"


def test_progress_has_a_rate_and_the_time_left_on_stderr(aqtopo: Command, untrained_run: Path) -> None:
    lines = aqtopo("evaluate", untrained_run).err.splitlines()
    for what in ("240/240 hours of climatology, ", "6/6 forecasts, "):
        (line,) = [line for line in lines if line.startswith(what)]
        assert line.endswith("/s, 00:00 left")


def test_with_json_stdout_holds_the_file_and_nothing_else(aqtopo: Command, untrained_run: Path) -> None:
    ended = aqtopo("evaluate", untrained_run, "--json", "--split", "validation", "--tag", "last")
    content = json.loads(ended.out)
    assert content == json.loads((untrained_run / SCORES_FILE).read_text())
    assert (content["split"], content["years"]) == ("validation", [2017])
    assert len(content["scores"]) == content["summary"]["pairs"] == 24


def test_what_libraries_print_does_not_reach_the_json(
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
    ],
)
def test_bad_options_are_refused_and_nothing_is_written(
    aqtopo: Command, untrained_run: Path, options: list[str], message: str
) -> None:
    assert message in aqtopo("evaluate", untrained_run, *options).complaint
    assert not (untrained_run / SCORES_FILE).exists()


def test_a_directory_that_is_no_run_is_refused(aqtopo: Command, tmp_path: Path) -> None:
    assert "is not a run directory" in aqtopo("evaluate", tmp_path).complaint


def test_a_store_that_has_gone_is_named(aqtopo: Command, untrained_run: Path, tmp_path: Path) -> None:
    config = json.loads((untrained_run / "config.json").read_text())
    config["data"]["store"] = str(tmp_path / "gone.zarr")
    (untrained_run / "config.json").write_text(json.dumps(config))
    assert "gone.zarr" in aqtopo("evaluate", untrained_run).complaint


def test_weights_that_have_diverged_end_with_code_1(
    aqtopo: Command, tiny_config: Callable[..., RunConfig], save_untrained: Callable[..., Path]
) -> None:
    run = save_untrained(tiny_config(), factor=float("nan"))
    ended = aqtopo("evaluate", run)
    assert (ended.code, ended.out) == (1, "")
    assert "not finite" in ended.err
    assert not (run / SCORES_FILE).exists()
