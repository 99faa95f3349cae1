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
from aqtopo.evaluation.tables import TABLE_WIDTH, score_table, summary, table_width
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


def test_axes_may_run_the_other_way(run: LoadedRun, dataset: xr.Dataset, written: Written) -> None:
    turned = dataset.isel(lat=slice(None, None, -1), lead_time=slice(None, None, -1))
    straight = opened(written(dataset), run).at(np.array(INITS[:2]))
    np.testing.assert_array_equal(
        opened(written(turned, "turned.zarr"), run).at(np.array(INITS[:2])), straight
    )


def alike(other: OtherForecasts, dataset: xr.Dataset) -> None:
    stacked = np.stack([dataset[name].values for name in TARGET_VARIABLES], axis=2)
    np.testing.assert_allclose(other.at(np.array(INITS)), stacked, rtol=1e-5, atol=1e-2)


def test_packed_files_are_joined_without_wrapping(
    run: LoadedRun, dataset: xr.Dataset, tmp_path: Path
) -> None:
    paths = []
    for place, start in enumerate((2, 0, 1)):
        part = dataset.isel(init_time=[start]).drop_encoding()
        encoding = {}
        for name in TARGET_VARIABLES:
            low, high = float(part[name].min()), float(part[name].max())
            encoding[name] = {
                "dtype": "int16",
                "scale_factor": (high - low) / 6e4,
                "add_offset": (low + high) / 2,
                "_FillValue": -32768,
            }
        paths.append(tmp_path / f"cams_{place}.nc")
        part.to_netcdf(paths[-1], encoding=encoding)
    other = open_model(paths, run.store, TARGET_VARIABLES, HORIZONS_H)
    assert other.name == "cams"
    alike(other, dataset)


def test_another_layout_and_other_units_are_read(run: LoadedRun, dataset: xr.Dataset, tmp_path: Path) -> None:
    changed = dataset.drop_vars("time").rename(
        init_time="time", lead_time="prediction_timedelta", lat="latitude", lon="longitude", pm25="pm2p5"
    )
    changed["pm2p5"] = (changed["pm2p5"].astype("f8") * 1e-9).assign_attrs(units="kg m**-3")
    hours = dataset["lead_time"].values * np.timedelta64(1, "h")
    changed = changed.assign_coords(
        longitude=changed["longitude"] - 360, prediction_timedelta=hours.astype("m8[ns]")
    ).expand_dims(level=[1000])
    changed.to_zarr(tmp_path / "other.zarr", zarr_format=2, encoding={})
    alike(opened(tmp_path / "other.zarr", run), dataset)


@pytest.mark.parametrize("fill", [-9999.0, 1e20])
def test_an_undeclared_fill_value_ends_the_evaluation(
    run: LoadedRun, dataset: xr.Dataset, written: Written, fill: float
) -> None:
    dataset["pm25"][1, 0, 2, 3] = fill
    with pytest.raises(
        ValueError, match=r"pm25 = \S+ in 1 of .*first at initial time 2018-01-04T00:00, lead time 12"
    ):
        evaluate(run, options=EvalOptions(against=opened(written(dataset), run)))


def test_a_single_forecast_is_enough(run: LoadedRun, written: Written) -> None:
    other = opened(written(forecast(run, INITS[1])), run)
    assert other.at(np.array(INITS[1:2])).shape == (1, 4, 6, 8, 16)
    assert evaluate(run, options=EvalOptions(against=other)).scores.attrs["initialisations"] == 1


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_store_without_consolidated_metadata_gives_no_warning(
    run: LoadedRun, dataset: xr.Dataset, tmp_path: Path
) -> None:
    dataset.to_zarr(tmp_path / "cams.zarr", consolidated=False)
    assert opened(tmp_path / "cams.zarr", run).init_times.size == len(INITS)


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
    assert names == ["scores_against_cams.json", "scores_against_cams.zarr"]
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.drop_vars("o3"), "has no o3"),
        (
            lambda d: d.assign(co=d["co"].assign_attrs(units="ppb")),
            "has co in units that cannot be used: 'ppb'",
        ),
        (lambda d: d.assign_coords(lon=d["lon"] + 0.5), "is on another grid"),
        (lambda d: d.isel(lat=slice(1, None)), "is on another grid"),
        (lambda d: d.isel(lead_time=slice(1, None)), r"has no lead time of 12 h \(it has 24, 48, 96 h\)"),
        (lambda d: d.drop_vars("init_time"), "has no initial time"),
        (
            lambda d: d.assign_coords(init_time=d["init_time"] + np.timedelta64(30, "m")),
            "has the initial time 2018-01-02T00:30",
        ),
        (lambda d: d.isel(init_time=[0, 0, 1]), "has the initial time 2018-01-02T00:00 more than once"),
        (lambda d: d.expand_dims(member=2), r"on the further dimension member \(size 2\)"),
        (lambda d: d.isel(lon=0), "has no dimension of longitudes"),
        (lambda d: d.assign_coords(init_time=[0, 1, 2]), "has initial times of the type"),
        (
            lambda d: d.assign_coords(lead_time=("lead_time", [12.5, 24, 48, 96], d["lead_time"].attrs)),
            r"has no lead time of 12 h \(it has 12.5, 24, 48, 96 h\)",
        ),
        (
            lambda d: d.assign_coords(lead_time=("lead_time", [12, 12, 48, 96], d["lead_time"].attrs)),
            "has a lead time twice",
        ),
        (
            lambda d: d.isel(lat=[0, 0, 1, 2, 3, 4, 5, 6, 7]),
            "more than once",
        ),
    ],
)
def test_incompatible_forecasts_are_refused(
    run: LoadedRun,
    dataset: xr.Dataset,
    tmp_path: Path,
    change: Callable[[xr.Dataset], xr.Dataset],
    message: str,
) -> None:
    change(dataset).to_zarr(tmp_path / "cams.zarr", zarr_format=3, consolidated=True)
    with pytest.raises(ValueError, match=message):
        opened(tmp_path / "cams.zarr", run)


@pytest.mark.parametrize(
    ("name", "message"), [("gone.nc", "there is no such file"), ("gone.zarr", "there is no such file")]
)
def test_missing_files_are_named(run: LoadedRun, tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        opened(tmp_path / name, run)


def test_a_duplicate_name_is_refused(
    run: LoadedRun, dataset: xr.Dataset, written: Callable[..., Path]
) -> None:
    with pytest.raises(ValueError, match="cannot be used as a label of scores"):
        opened(written(dataset, "climatology.nc"), run)


def test_forecasts_of_other_days_are_refused(run: LoadedRun, written: Written) -> None:
    other = opened(written(forecast(run, INITS[2])), run)
    with pytest.raises(ValueError, match=r"have none of the 6 initial times of the test split.*--every"):
        evaluate(run, options=EvalOptions(against=other))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other.json", "is not a NetCDF file: it begins with {}"),
        ("absent.nc", "there is no such file"),
        ("", "is a directory without a zarr group"),
    ],
)
def test_an_unreadable_forecast_file_is_refused_in_one_sentence(
    run: LoadedRun, tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "other.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        open_model(tmp_path / name, run.store, TARGET_VARIABLES, HORIZONS_H)
    assert len(str(caught.value)) < len(str(tmp_path)) + 200
