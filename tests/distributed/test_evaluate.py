"""Scores of several processes, against those of one."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from aqtopo.evaluation.evaluate import EvalOptions, evaluate
from aqtopo.evaluation.results import read_table, write_results
from aqtopo.inference.forecast import forecast
from aqtopo.inference.forecast_file import write_forecast
from aqtopo.inference.load import load_run

from .conftest import TIME_LIMIT_S, environment, launcher_command


def numbers(content: Any) -> list[float]:
    """All numbers in a part of `scores.json`, in order; null as NaN."""
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, list):
        return [number for item in content for number in numbers(item)]
    return [] if isinstance(content, str) else [float("nan") if content is None else float(content)]


def scores_of_two_ranks(run_dir: Path, *options: str) -> Any:
    """The content of `scores.json` from `aqtopo evaluate` on two real ranks."""
    ended = evaluate_on_two_ranks(run_dir, *options)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def evaluate_on_two_ranks(run_dir: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    """`aqtopo evaluate` on two real ranks."""
    return subprocess.run(
        [*launcher_command("torchrun", 2), "evaluate", str(run_dir), "--json", *options],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
        check=False,
    )


@pytest.mark.slow
def test_two_ranks_give_the_scores_of_one(untrained_run: Path) -> None:
    shared = scores_of_two_ranks(untrained_run, "--every", "1")
    tables = {
        name: read_table(untrained_run, name) for name in ("by_day", "by_hour", "exceedances", "spectra")
    }
    done = evaluate(load_run(untrained_run), options=EvalOptions(every_hours=1))
    write_results(done, untrained_run)
    alone = json.loads((untrained_run / "scores.json").read_text(encoding="utf-8"))
    for part in ("summary", "scores", "strata", "exceedances", "spectra"):
        expected = numbers(alone[part])
        assert expected
        np.testing.assert_allclose(numbers(shared[part]), expected, rtol=1e-6)
    for name, table in tables.items():
        xr.testing.assert_allclose(table, read_table(untrained_run, name), rtol=1e-6)
    assert shared["initialisations"] == alone["initialisations"] == 144
    assert tables["exceedances"]["correct_negatives"].sum() > 0


@pytest.mark.slow
def test_an_impossible_value_on_one_rank_ends_both_with_its_message(
    untrained_run: Path, tmp_path: Path
) -> None:
    run, paths = load_run(untrained_run), [tmp_path / "cams0.nc", tmp_path / "cams1.nc"]
    forecasts = [forecast(run, np.datetime64(day, "h")) for day in ("2018-01-02", "2018-01-04")]
    forecasts[1]["pm25"][0, 2, 3] = -9999.0  # the second rank reads it
    for dataset, path in zip(forecasts, paths, strict=True):
        write_forecast(dataset, path)
    ended = evaluate_on_two_ranks(untrained_run, *(f"--against={path}" for path in paths))
    assert ended.returncode != 0
    assert ended.stderr.count("pm25 = -9999") == 2
    assert "Connection closed" not in ended.stderr
