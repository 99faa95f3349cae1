"""Scores of a run, against the same computed from the store with xarray."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from aqtopo.config import RunConfig
from aqtopo.data import open_store, write_statistics, write_store
from aqtopo.data.samples import sample_table
from aqtopo.evaluation.evaluate import EvalOptions, evaluate
from aqtopo.evaluation.points import BASELINES, FORECASTS, Region
from aqtopo.evaluation.results import read_table, write_results, write_tables
from aqtopo.evaluation.tables import detail_table
from aqtopo.inference.load import LoadedRun, load_run
from aqtopo.variables import HORIZONS_H, TARGET_VARIABLES, VARIABLES

INITS = np.arange("2018-01-01", "2018-01-07", dtype="datetime64[D]").astype("datetime64[h]")
"""The test times of the tiny run: every 24 h, with all targets in the ten days of the year."""


def stored_fields(path: str | Path) -> xr.DataArray:
    store = xr.open_zarr(path, consolidated=False, chunks=None)
    inside = store["static"].sel(static_channel="mask", drop=True) > 0
    fields: xr.DataArray = (
        store["fields"].sel(channel=list(TARGET_VARIABLES)).astype(np.float64).where(inside)
    )
    return fields


def at(fields: xr.DataArray, times: np.ndarray) -> np.ndarray:
    values: np.ndarray = fields.sel(time=times.astype("datetime64[ns]")).values
    return values


@pytest.fixture
def run(untrained_run: Path) -> LoadedRun:
    return load_run(untrained_run)


def test_references_are_scored_as_directly_from_the_store(run: LoadedRun) -> None:
    scores = evaluate(run).scores
    fields = stored_fields(run.store.path)
    by_hour = fields.sel(time="2016").groupby("time.hour").mean()
    for horizon in HORIZONS_H:
        valid = INITS + np.timedelta64(horizon, "h")
        truth = at(fields, valid)
        forecasts = {
            "persistence": at(fields, INITS),
            "climatology": by_hour.sel(hour=xr.DataArray(valid.astype(int) % 24, dims="time"))
            .transpose("time", ...)
            .values,
        }
        for name, forecast in forecasts.items():
            error = forecast - truth
            got = scores.sel(horizon=horizon).sel(forecast=name)
            axes = (0, 2, 3)
            np.testing.assert_allclose(got["rmse"], np.sqrt(np.nanmean(error**2, axis=axes)), rtol=1e-5)
            np.testing.assert_allclose(got["mae"], np.nanmean(np.abs(error), axis=axes), rtol=1e-5)
            np.testing.assert_allclose(got["bias"], np.nanmean(error, axis=axes), rtol=1e-4, atol=1e-4)


def test_the_model_is_scored_in_physical_units_at_every_point_of_the_mask(run: LoadedRun) -> None:
    # Without a bias or weight in its last layer the network forecasts 0, which is the mean in physical units.
    with torch.no_grad():
        for parameter in list(run.model.head[-1].parameters()):
            parameter.zero_()
    scores = evaluate(run).scores.sel(forecast="model")
    fields = stored_fields(run.store.path)
    for c, name in enumerate(TARGET_VARIABLES):
        for horizon in HORIZONS_H:
            truth = at(fields, INITS + np.timedelta64(horizon, "h"))[:, c]
            pair = scores.sel(pollutant=name, horizon=horizon)
            expected = np.sqrt(np.nanmean((run.store.mean[name] - truth) ** 2))
            np.testing.assert_allclose(pair["rmse"], expected, rtol=1e-5)
            assert pair["count"] == INITS.size * 8 * 15


def test_baselines_of_constant_fields_are_perfect(
    tiny_dataset: xr.Dataset,
    tmp_path: Path,
    tiny_config: Callable[..., RunConfig],
    save_untrained: Callable[[RunConfig], Path],
) -> None:
    tiny_dataset["fields"][:] = tiny_dataset["fields"][:1].values
    store = tmp_path / "calm.zarr"
    write_store(tiny_dataset, store)
    write_statistics(store, [2016])
    scores = evaluate(load_run(save_untrained(tiny_config(data={"store": str(store)})))).scores
    for name in BASELINES:
        np.testing.assert_allclose(scores["rmse"].sel(forecast=name), 0.0, atol=1e-3)
    assert (scores["rmse"].sel(forecast="model") > 1e-3).all()


def test_missing_values_are_left_out_and_counted(
    tiny_dataset: xr.Dataset,
    tmp_path: Path,
    tiny_config: Callable[..., RunConfig],
    save_untrained: Callable[[RunConfig], Path],
) -> None:
    fields = tiny_dataset["fields"]
    cell = {"lat": fields.lat[2], "lon": fields.lon[5]}
    fields.loc[{"channel": "so2", "time": "2018-01-02T00", **cell}] = np.nan  # truth at 24 h, persistence
    fields.loc[{"channel": "o3", "time": slice("2016-01-01", "2016-12-31"), **cell}] = np.nan  # climatology
    store = tmp_path / "holes.zarr"
    write_store(tiny_dataset, store)
    write_statistics(store, [2016])
    scores = evaluate(load_run(save_untrained(tiny_config(data={"store": str(store)})))).scores
    whole = INITS.size * 8 * 15
    so2, o3 = scores.sel(pollutant="so2"), scores.sel(pollutant="o3")
    np.testing.assert_array_equal(so2["left_out"], 1)
    # The truth itself is missing once, at 24 h from the first day.
    np.testing.assert_array_equal(so2["count"], [whole - 1, whole - 2, whole - 1, whole - 1])
    np.testing.assert_array_equal(o3["left_out"], INITS.size)
    np.testing.assert_array_equal(o3["count"], whole - INITS.size)
    assert scores.attrs["inputs_filled"] == 1
    assert not scores["left_out"].sel(pollutant=["pm25", "pm10", "no2", "co"]).any()


@pytest.mark.parametrize("lead_time", ["encoder", "decoder"])
def test_the_size_of_the_batches_does_not_change_the_scores(
    tiny_config: Callable[..., RunConfig],
    save_untrained: Callable[[RunConfig], Path],
    monkeypatch: pytest.MonkeyPatch,
    lead_time: str,
) -> None:
    run = load_run(save_untrained(tiny_config(model={"lead_time": lead_time})))
    whole = evaluate(run).scores
    monkeypatch.setattr("aqtopo.evaluation.evaluate.TOKENS_PER_BATCH", 4 * run.config.tokens)
    in_parts = evaluate(run).scores
    assert whole.attrs.pop("created")
    assert in_parts.attrs.pop("created")
    xr.testing.assert_allclose(in_parts, whole, rtol=1e-5)
    assert in_parts.attrs == whole.attrs


def test_a_run_of_ozone_alone_which_has_no_daily_limit_is_scored(
    tiny_config: Callable[..., RunConfig], save_untrained: Callable[[RunConfig], Path], tmp_path: Path
) -> None:
    done = evaluate(load_run(save_untrained(tiny_config(data={"targets": ["o3"]}))))
    assert done.scores["pollutant"].values.tolist() == ["o3"]
    assert done.exceedances.sizes["pollutant"] == 0
    assert "No pollutant of this run has a limit" in str(detail_table(done, "exceedances"))
    written, *_ = write_results(done, tmp_path)
    assert json.loads(written.read_text(encoding="utf-8"))["exceedances"] == []


def test_scores_have_their_provenance_as_attributes(run: LoadedRun) -> None:
    told: list[tuple[str, int, int]] = []
    scores = evaluate(run, "validation", lambda *facts: told.append(facts)).scores
    sizes = {"forecast": len(FORECASTS), "reference": len(BASELINES), "pollutant": 6, "horizon": 4}
    assert dict(scores.sizes) == sizes
    assert tuple(scores["forecast"].values) == FORECASTS
    np.testing.assert_array_equal(scores["units"], [VARIABLES[name].units for name in TARGET_VARIABLES])
    expected: dict[str, Any] = {
        "run": "tiny",
        "tag": "epoch00-step000007-val0.5000",
        "config_digest": run.config.digest,
        "split": "validation",
        "years": [2017],
        "climatology_years": [2016],
        "initialisations": 6,
        "first_init": "2017-01-01T00",
        "last_init": "2017-01-06T00",
        "inputs_filled": 0,
        "data_source": open_store(run.config.data.store).source,
    }
    assert {key: scores.attrs[key] for key in expected} == expected
    assert {"aqtopo", "torch", "numpy", "python"} <= scores.attrs["versions"].keys()
    assert scores.attrs["standard_deviations"].keys() == set(TARGET_VARIABLES)
    assert told[-1] == ("forecasts", 6, 6)


def test_weights_that_have_diverged_are_named(run: LoadedRun) -> None:
    with torch.no_grad():
        next(iter(run.model.head[-1].parameters())).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not finite"):
        evaluate(run)


def test_daily_sums_are_those_of_each_initial_day(run: LoadedRun, tmp_path: Path) -> None:
    write_tables(evaluate(run).tables, tmp_path)
    by_day = read_table(tmp_path, "by_day").sel(area="all").sel(forecast="persistence")
    fields = stored_fields(run.store.path)
    np.testing.assert_array_equal(by_day["day"], INITS.astype("datetime64[ns]"))
    for horizon in HORIZONS_H:
        error = at(fields, INITS) - at(fields, INITS + np.timedelta64(horizon, "h"))
        here = by_day.sel(horizon=horizon)
        np.testing.assert_allclose(here["squared"], np.nansum(error**2, axis=(2, 3)), rtol=1e-5)
        np.testing.assert_array_equal(here["count"], np.isfinite(error).sum(axis=(2, 3)))


def test_elevation_bands_share_the_cells_of_the_domain(run: LoadedRun) -> None:
    done = evaluate(run, options=EvalOptions(regions=[Region("east", 20.0, 48.0, 110.0, 134.0)]))
    area = done.strata["area"]
    assert area["area"].values.tolist() == ["all", "plains", "slopes", "mountains", "plateau", "east"]
    count = area["count"].sel(pollutant="pm25", horizon=12)
    assert count.sel(area="all") == count[area["area_kind"] == "elevation"].sum()
    elevation, inside = run.store.static["elevation"], run.store.static["mask"] > 0
    assert count.sel(area="slopes") == INITS.size * ((elevation >= 500) & (elevation < 1500) & inside).sum()
    assert count.sel(area="east") == INITS.size * 8 * (run.store.lon >= 110).sum()
    squares = area["rmse"] ** 2 * area["count"]
    bands = squares.isel(area=(area["area_kind"] == "elevation").values).sum("area")
    np.testing.assert_allclose(bands, squares.sel(area="all"), rtol=1e-10)


def test_area_weights_change_errors_and_skill_but_not_counts_and_days(run: LoadedRun) -> None:
    weighted, plain = evaluate(run, options=EvalOptions(weighting="area")), evaluate(run)
    assert weighted.scores.attrs["weighting"].startswith("area: ")
    assert plain.scores.attrs["weighting"].startswith("none: ")
    xr.testing.assert_identical(weighted.scores["count"], plain.scores["count"])
    xr.testing.assert_identical(weighted.exceedances.drop_attrs(), plain.exceedances.drop_attrs())
    xr.testing.assert_identical(weighted.spectra.drop_attrs(), plain.spectra.drop_attrs())
    for measure in ("rmse", "mae", "bias", "acc", "skill"):
        assert not np.allclose(weighted.scores[measure], plain.scores[measure], rtol=1e-4, equal_nan=True)
    times = sample_table(run.config, run.store.times, "test").times
    first = run.store.locate(times)
    channel = run.store.channels.index("pm25")
    ends = run.store.locate(times + np.timedelta64(12, "h"))
    error = np.stack(
        [run.store.read(a)[channel] - run.store.read(b)[channel] for a, b in zip(first, ends, strict=True)]
    )
    mask = run.store.static["mask"] > 0
    weights = np.broadcast_to(np.cos(np.deg2rad(run.store.lat))[:, None] * mask, error.shape)
    expected = np.sqrt((weights * error.astype(np.float64) ** 2).sum() / weights.sum())
    pair = weighted.scores["rmse"].sel(forecast="persistence", pollutant="pm25", horizon=12)
    assert float(pair) == pytest.approx(expected, rel=1e-5)
