"""Streaming error sums against the same scores computed at once."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from aqtopo.evaluation.scores import (
    FORECASTS,
    MODEL,
    REFERENCES,
    BoolArray,
    ErrorSums,
    FloatArray,
    skill_against,
)

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

    forecasts = {MODEL: field()} | {name: with_holes(field()) for name in REFERENCES}
    return forecasts, with_holes(field()), generator.random(SHAPE) < 0.8


def summed(*batches: tuple[dict[str, FloatArray], FloatArray, BoolArray]) -> ErrorSums:
    sums = ErrorSums.empty(POLLUTANTS, HORIZONS_H)
    for batch in batches:
        sums.add(*batch)
    return sums


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), holes=st.floats(0.0, 0.95))
def test_scores_equal_a_direct_computation(seed: int, holes: float) -> None:
    forecasts, truth, wanted = sample(seed, holes)
    scores = summed((forecasts, truth, wanted)).scores()
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


@settings(max_examples=20, deadline=None)
@given(seeds=st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=5), cut=st.integers(1, 4))
def test_merged_parts_equal_the_single_pass(seeds: list[int], cut: int) -> None:
    batches = [sample(seed) for seed in seeds]
    whole = summed(*batches).scores()
    parts = summed(*batches[:cut]).merge(summed(*batches[cut:])).scores()
    xr.testing.assert_allclose(parts, whole, rtol=1e-13)


def test_the_size_of_the_batches_does_not_matter() -> None:
    forecasts, truth, wanted = sample(3)
    one_by_one = [
        ({name: values[b : b + 1] for name, values in forecasts.items()}, truth[b : b + 1], wanted[b : b + 1])
        for b in range(SHAPE[0])
    ]
    whole = summed((forecasts, truth, wanted)).scores()
    xr.testing.assert_allclose(summed(*one_by_one).scores(), whole, rtol=1e-13)


def test_a_perfect_forecast_has_no_error_and_full_skill() -> None:
    forecasts, truth, wanted = sample(1)
    forecasts[MODEL] = np.nan_to_num(truth)
    scores = summed((forecasts, truth, wanted)).scores()
    assert not scores[["rmse", "mae", "bias"]].sel(forecast=MODEL).to_array().any()
    assert (scores["skill"] == 1.0).all()


def test_a_constant_offset_is_the_bias_and_the_rmse() -> None:
    forecasts, truth, wanted = sample(2)
    forecasts[MODEL] = np.nan_to_num(truth) - 4.0
    scores = summed((forecasts, truth, wanted)).scores().sel(forecast=MODEL)
    np.testing.assert_allclose(scores["bias"], -4.0, rtol=1e-6)
    np.testing.assert_allclose(scores["rmse"], 4.0, rtol=1e-6)


def test_a_hole_in_one_reference_leaves_the_point_out_for_every_forecast() -> None:
    forecasts, truth, wanted = sample(4, holes=0.0)
    wanted[:] = True
    forecasts["climatology"][0, 0, 0, 0, 0] = np.nan
    forecasts[MODEL][0, 0, 0, 0, 0] = 1e9
    scores = summed((forecasts, truth, wanted)).scores()
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
        summed((forecasts, truth, wanted))


def test_a_broken_forecast_outside_the_mask_does_not_matter() -> None:
    forecasts, truth, wanted = sample(6)
    clean = summed((forecasts, truth, wanted)).scores()
    forecasts[MODEL] = np.where(wanted, forecasts[MODEL], np.nan)
    xr.testing.assert_identical(summed((forecasts, truth, wanted)).scores(), clean)


def test_nothing_counted_gives_nan_not_zero() -> None:
    scores = ErrorSums.empty(POLLUTANTS, HORIZONS_H).scores()
    assert scores[["rmse", "mae", "bias", "skill"]].isnull().all().to_array().all()
    assert not scores["count"].any()


def test_skill_has_the_sign_of_the_gain_and_no_value_against_a_perfect_reference() -> None:
    rmse = xr.DataArray(
        [[10.0, 10.0], [20.0, 5.0], [10.0, 0.0]],
        dims=("forecast", "horizon"),
        coords={"forecast": list(FORECASTS)},
    )
    np.testing.assert_array_equal(skill_against(rmse), [[0.5, -1.0], [0.0, np.nan]])


def test_float32_fields_are_summed_in_float64() -> None:
    sums = ErrorSums.empty(("pm25",), (12,))
    truth = np.zeros((1, 1, 1, 1, 1), dtype=np.float32)
    for value in (1.0, 1e-5):
        forecast = np.full(truth.shape, value, dtype=np.float32)
        sums.add(dict.fromkeys(FORECASTS, forecast), truth, np.ones(truth.shape, dtype=np.bool_))
    assert sums.squared[0, 0, 0] == 1.0 + float(np.float32(1e-5)) ** 2
