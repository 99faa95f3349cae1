"""Another model's forecasts beside a run's."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from aqtopo.data.forecasts import OtherForecasts
from aqtopo.evaluation.against import open_model
from aqtopo.evaluation.evaluate import EvalOptions, evaluate
from aqtopo.evaluation.points import FORECASTS
from aqtopo.evaluation.results import write_results
from aqtopo.evaluation.tables import TABLE_WIDTH, kept_values, score_table, summary, table_width
from aqtopo.inference.forecast import forecast
from aqtopo.inference.forecast_file import write_forecast
from aqtopo.inference.load import LoadedRun, load_run
from aqtopo.variables import HORIZONS_H, TARGET_VARIABLES

INITS = [np.datetime64(day, "h") for day in ("2018-01-02", "2018-01-04", "2018-01-09")]
"""The third is a time that the run is not scored on: some of its targets lie beyond the end of the year."""


@pytest.fixture
def run(untrained_run: Path) -> LoadedRun:
    return load_run(untrained_run)


@pytest.fixture
def dataset(run: LoadedRun) -> xr.Dataset:
    return xr.concat(
        [forecast(run, init) for init in INITS],
        "init_time",
        coords="different",
        compat="equals",
        combine_attrs="drop_conflicts",
    )


Written = Callable[[xr.Dataset], Path]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    def write(dataset: xr.Dataset, name: str = "cams.zarr") -> Path:
        write_forecast(dataset, tmp_path / name)
        return tmp_path / name

    return write


def opened(path: Path, run: LoadedRun) -> OtherForecasts:
    return open_model(path, run.store, TARGET_VARIABLES, HORIZONS_H)


@pytest.mark.parametrize("name", ["cams.zarr", "cams.nc"])
def test_the_runs_own_forecasts_score_as_the_run(
    run: LoadedRun, dataset: xr.Dataset, written: Callable[..., Path], name: str
) -> None:
    done = evaluate(run, options=EvalOptions(against=opened(written(dataset, name), run)))
    scores = done.scores
    assert scores["forecast"].values.tolist() == [*FORECASTS, "cams"]
    assert scores.attrs["initialisations"] == 2
    one, other = (scores.sel(forecast=who, drop=True) for who in ("model", "cams"))
    xr.testing.assert_allclose(one[["rmse", "mae", "bias"]], other[["rmse", "mae", "bias"]], rtol=1e-5)
    np.testing.assert_allclose(scores["skill"].sel(reference="cams"), 0.0, atol=1e-5)


@pytest.mark.parametrize("fill", [-9999.0, 1e20])
def test_an_undeclared_fill_value_is_found_before_the_fits(
    run: LoadedRun, dataset: xr.Dataset, written: Written, fill: float
) -> None:
    dataset["pm25"][1, 0, 2, 3] = fill
    options, counted = EvalOptions(against=opened(written(dataset), run)), set[str]()
    with pytest.raises(
        ValueError, match=r"pm25 = \S+ in 1 of .*first at initial time 2018-01-04T00:00, lead time 12"
    ):
        evaluate(run, report=lambda what, _done, _due: counted.add(what), options=options)
    assert counted <= {"forecasts checked"}


def test_negative_values_are_kept_counted_and_reported(
    run: LoadedRun, dataset: xr.Dataset, written: Written, tmp_path: Path
) -> None:
    for name in TARGET_VARIABLES:
        dataset[name] = abs(dataset[name])
    dataset["pm25"][1, 0, 2, 3:6], dataset["o3"][0, 2, 0, 0] = -2.0, -0.5
    done = evaluate(run, options=EvalOptions(against=opened(written(dataset), run)))
    assert done.scores.attrs["kept_values"] == {"cams": {"o3": 1, "pm25": 3}}
    assert kept_values(done.scores) == (
        "Values outside the valid range, which are kept: 1 of o3, 3 of pm25 in cams."
    )
    content = json.loads(write_results(done, tmp_path)[0].read_text(encoding="utf-8"))
    assert content["kept_values"] == {"cams": {"o3": 1, "pm25": 3}}
    assert kept_values(evaluate(run).scores) == ""


def test_a_single_forecast_is_enough(run: LoadedRun, written: Written) -> None:
    other = opened(written(forecast(run, INITS[1])), run)
    assert other.at(np.array(INITS[1:2])).shape == (1, 4, 6, 8, 16)
    assert evaluate(run, options=EvalOptions(against=other)).scores.attrs["initialisations"] == 1


def test_cells_that_the_other_lacks_are_scored_for_none(
    run: LoadedRun, dataset: xr.Dataset, written: Written
) -> None:
    dataset["pm25"][:, :, 3:5] = np.nan
    scores = evaluate(run, options=EvalOptions(against=opened(written(dataset), run))).scores
    assert (scores["count"].sel(pollutant="pm25") == 2 * 6 * 15).all()
    assert (scores["left_out"].sel(pollutant="pm25") == 2 * 2 * 15).all()


def test_scores_against_another_model_keep_the_runs_own_files(
    run: LoadedRun, dataset: xr.Dataset, written: Written, tmp_path: Path
) -> None:
    done = evaluate(run, options=EvalOptions(against=opened(written(dataset), run)))
    names = [path.name for path in write_results(done, tmp_path)]
    assert names == ["scores_against_cams.json", "scores_against_cams.csv", "scores_against_cams.zarr"]
    content = json.loads((tmp_path / names[0]).read_text(encoding="utf-8"))
    assert "model_beats_cams" in content["summary"]
    rivals = done.scores.sel(forecast="cams")
    for entry in content["scores"]:
        pair = rivals.sel(pollutant=entry["pollutant"], horizon=entry["horizon_h"])
        assert entry["cams"] == {name: float(pair[name]) for name in ("rmse", "mae", "bias", "acc")}
        assert entry["skill"]["cams"] == float(pair["skill"].sel(reference="cams"))
    columns = [str(column.header) for column in score_table(done.scores).columns]
    assert [name for name in columns if name.startswith("RMSE")] == [
        f"RMSE\n{name}" for name in (*FORECASTS, "cams")
    ]
    assert table_width(done.scores) > TABLE_WIDTH
    assert "cams in " in summary(done.scores)


def test_a_duplicate_name_is_refused(
    run: LoadedRun, dataset: xr.Dataset, written: Callable[..., Path]
) -> None:
    with pytest.raises(ValueError, match="cannot be used as a label of scores"):
        opened(written(dataset, "climatology.nc"), run)


def test_forecasts_of_other_days_are_refused(run: LoadedRun, written: Written) -> None:
    other = opened(written(forecast(run, INITS[2])), run)
    with pytest.raises(ValueError, match=r"have none of the 6 initial times of the test split.*--every"):
        evaluate(run, options=EvalOptions(against=other))
