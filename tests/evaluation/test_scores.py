"""Streaming error sums against the same scores computed at once."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scores import continuous

from aqtopo.evaluation.points import BASELINES, FORECASTS, MODEL, BoolArray, FloatArray
from aqtopo.evaluation.scores import overall, skill_against, stratified_scores

from .made import Batch, init_times, summed

POLLUTANTS = ("pm25", "o3")
HORIZONS_H = (12, 48, 96)
SHAPE = (5, len(HORIZONS_H), len(POLLUTANTS), 3, 4)


def sample(seed: int, holes: float = 0.2) -> tuple[dict[str, FloatArray], FloatArray, BoolArray]:
    """Every forecast, truth and mask; truth and references have NaN at random points."""
    generator = np.random.default_rng(seed)

    def field() -> FloatArray:
        return generator.gamma(2.0, 20.0, SHAPE).astype(np.float32)

    def with_holes(values: FloatArray) -> FloatArray:
        return np.where(generator.random(SHAPE) < holes, np.float32(np.nan), values)

    forecasts = {MODEL: field()} | {name: with_holes(field()) for name in BASELINES}
    return forecasts, with_holes(field()), generator.random(SHAPE) < 0.8


def scored(*batches: Batch) -> xr.Dataset:
    return overall(summed(*batches, pollutants=POLLUTANTS, horizons_h=HORIZONS_H).by_day())


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), holes=st.floats(0.0, 0.95))
def test_scores_equal_a_direct_computation(seed: int, holes: float) -> None:
    forecasts, truth, wanted = sample(seed, holes)
    scores = scored((forecasts, truth, wanted))
    for c, pollutant in enumerate(POLLUTANTS):
        for k, horizon in enumerate(HORIZONS_H):
            pair = np.s_[:, k, c]
            due = wanted[pair] & np.isfinite(truth[pair])
            use = due & np.all([np.isfinite(forecasts[m][pair]) for m in FORECASTS], axis=0)
            here = scores.sel(pollutant=pollutant, horizon=horizon)
            assert here["count"] == use.sum()
            assert here["left_out"] == due.sum() - use.sum()
            for name in FORECASTS if use.any() else ():
                error = forecasts[name][pair][use].astype(np.float64) - truth[pair][use]
                got = here.sel(forecast=name)
                np.testing.assert_allclose(got["rmse"], np.sqrt(np.mean(error**2)), rtol=1e-12)
                np.testing.assert_allclose(got["mae"], np.mean(np.abs(error)), rtol=1e-12)
                np.testing.assert_allclose(got["bias"], np.mean(error), rtol=1e-9, atol=1e-12)


def test_the_size_of_the_batches_does_not_matter() -> None:
    forecasts, truth, wanted = sample(3)
    one_by_one = [
        ({name: values[b : b + 1] for name, values in forecasts.items()}, truth[b : b + 1], wanted[b : b + 1])
        for b in range(SHAPE[0])
    ]
    whole = scored((forecasts, truth, wanted))
    xr.testing.assert_allclose(scored(*one_by_one), whole, rtol=1e-13)


def test_a_perfect_forecast_has_no_error_and_full_skill() -> None:
    forecasts, truth, wanted = sample(1)
    forecasts[MODEL] = np.nan_to_num(truth)
    scores = scored((forecasts, truth, wanted))
    assert not scores[["rmse", "mae", "bias"]].sel(forecast=MODEL).to_array().any()
    assert (scores["skill"] == 1.0).all()


def test_a_constant_offset_is_the_bias_and_the_rmse() -> None:
    forecasts, truth, wanted = sample(2)
    forecasts[MODEL] = np.nan_to_num(truth) - 4.0
    scores = scored((forecasts, truth, wanted)).sel(forecast=MODEL)
    np.testing.assert_allclose(scores["bias"], -4.0, rtol=1e-6)
    np.testing.assert_allclose(scores["rmse"], 4.0, rtol=1e-6)


def test_a_hole_in_one_reference_leaves_the_point_out_for_every_forecast() -> None:
    forecasts, truth, wanted = sample(4, holes=0.0)
    wanted[:] = True
    forecasts["climatology"][0, 0, 0, 0, 0] = np.nan
    forecasts[MODEL][0, 0, 0, 0, 0] = 1e9
    scores = scored((forecasts, truth, wanted))
    points = SHAPE[0] * SHAPE[3] * SHAPE[4]
    pair = {"pollutant": "pm25", "horizon": 12}
    assert scores["count"].sel(pair) == points - 1
    assert scores["left_out"].sel(pair) == scores["left_out"].sum() == 1
    assert scores["rmse"].sel(pair).sel(forecast=MODEL) < 1e6


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_forecast_that_is_not_finite_is_refused_by_pollutant_and_horizon(broken: float) -> None:
    forecasts, truth, wanted = sample(5, holes=0.0)
    wanted[:] = True
    forecasts[MODEL][2, 1, 1] = broken
    with pytest.raises(FloatingPointError, match=r"not finite at 12 points .* o3 at 48 h .* another tag"):
        scored((forecasts, truth, wanted))


def test_a_broken_forecast_outside_the_mask_does_not_matter() -> None:
    forecasts, truth, wanted = sample(6)
    clean = scored((forecasts, truth, wanted))
    forecasts[MODEL] = np.where(wanted, forecasts[MODEL], np.nan)
    xr.testing.assert_identical(scored((forecasts, truth, wanted)), clean)


def test_nothing_counted_gives_nan_not_zero() -> None:
    forecasts, truth, wanted = sample(7)
    scores = scored((forecasts, truth, np.zeros_like(wanted)))
    assert scores[["rmse", "mae", "bias", "acc", "skill"]].isnull().all().to_array().all()
    assert not scores["count"].any()


def test_skill_has_the_sign_of_the_gain_and_no_value_against_a_perfect_reference() -> None:
    further = len(BASELINES) - 2
    rmse = xr.DataArray(
        [[10.0, 10.0], [20.0, 5.0], [10.0, 0.0], *further * [[40.0, 8.0]]],
        dims=("forecast", "horizon"),
        coords={"forecast": list(FORECASTS)},
    )
    expected = [[0.5, -1.0], [0.0, np.nan], *further * [[0.75, -0.25]]]
    np.testing.assert_array_equal(skill_against(rmse), expected)


def test_float32_fields_are_summed_in_float64() -> None:
    truth = np.zeros((2, 1, 1, 1, 1), dtype=np.float32)
    forecast = np.array([1.0, 1e-5], dtype=np.float32).reshape(truth.shape)
    batch = dict.fromkeys(FORECASTS, forecast), truth, np.ones(truth.shape, dtype=np.bool_)
    sums = summed(batch, pollutants=("pm25",), horizons_h=(12,)).by_day()
    assert sums["squared"].sel(forecast=MODEL).sum() == 1.0 + float(np.float32(1e-5)) ** 2


def test_scores_equal_those_of_the_bureau_of_meteorologys_package() -> None:
    forecasts, truth, wanted = sample(8)
    use = wanted & np.isfinite(truth) & np.all([np.isfinite(f) for f in forecasts.values()], axis=0)
    dims = ("init", "horizon", "pollutant", "lat", "lon")
    observed = xr.DataArray(np.where(use, truth, np.nan).astype(np.float64), dims=dims)
    got = scored((forecasts, truth, wanted))
    anomaly = observed - forecasts["climatology"]
    for name, values in forecasts.items():
        forecast = xr.DataArray(np.where(use, values, np.nan).astype(np.float64), dims=dims)
        over: dict[str, list[str]] = {"reduce_dims": ["init", "lat", "lon"]}
        mine = got.sel(forecast=name).transpose("horizon", "pollutant", ...)
        np.testing.assert_allclose(mine["rmse"], continuous.rmse(forecast, observed, **over), rtol=1e-12)
        np.testing.assert_allclose(mine["mae"], continuous.mae(forecast, observed, **over), rtol=1e-12)
        np.testing.assert_allclose(
            mine["bias"], continuous.additive_bias(forecast, observed, **over), rtol=1e-9, atol=1e-12
        )
        if name != "climatology":
            # Mirrored at zero both samples have no mean, so Pearson's correlation is the uncentred one.
            one, other = forecast - forecasts["climatology"], anomaly
            mirrored = [xr.concat([field, -field], "init") for field in (one, other)]
            expected = continuous.correlation.pearsonr(*mirrored, **over)
            np.testing.assert_allclose(mine["acc"], expected, rtol=1e-9)


def test_strata_are_the_scores_of_their_parts() -> None:
    forecasts, truth, wanted = sample(9)
    sums = summed((forecasts, truth, wanted), pollutants=POLLUTANTS, horizons_h=HORIZONS_H)
    strata = stratified_scores(sums.by_day(), sums.by_hour())
    days = init_times(SHAPE[0]).astype("datetime64[M]").astype(int) % 12 + 1
    assert strata["season"]["season"].values.tolist() == ["DJF", "MAM"]
    for season, inside in (("DJF", days < 3), ("MAM", days >= 3)):
        part = wanted & inside[:, None, None, None, None]
        xr.testing.assert_allclose(
            strata["season"].sel(season=season, drop=True), scored((forecasts, truth, part)), rtol=1e-12
        )
    hours = (init_times(SHAPE[0])[:, None] + np.array(HORIZONS_H)).astype(int) % 24
    for hour in strata["hour"]["hour"].values:
        part = wanted & (hours == hour)[:, :, None, None, None]
        xr.testing.assert_allclose(
            strata["hour"].sel(hour=hour, drop=True), scored((forecasts, truth, part)), rtol=1e-12
        )
    assert sorted(set(hours.ravel())) == strata["hour"]["hour"].values.tolist()


def test_sums_over_parts_of_the_data_add_up() -> None:
    forecasts, truth, wanted = sample(10)
    early = np.arange(SHAPE[0])[:, None, None, None, None] < 2
    parts = [
        summed((forecasts, truth, wanted & half), pollutants=POLLUTANTS, horizons_h=HORIZONS_H)
        for half in (early, ~early)
    ]
    whole = summed((forecasts, truth, wanted), pollutants=POLLUTANTS, horizons_h=HORIZONS_H)
    for table, expected in whole.tables().items():
        one, other = (sums.tables()[table] for sums in parts)
        xr.testing.assert_allclose(one + other, expected, rtol=1e-13)
