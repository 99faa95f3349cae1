"""Power spectra of forecasts and truth."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from rich.console import Console

from aqtopo.data import Store, open_store
from aqtopo.evaluation.points import FORECASTS, MODEL, FloatArray, areas_of, make_scored_batch
from aqtopo.evaluation.scores import ScoreAxes
from aqtopo.evaluation.spectra import KM_PER_DEGREE, TRUTH, Spectra, spectral_scores
from aqtopo.evaluation.tables import spectra_table

ROWS, COLUMNS = 48, 96
LAT, LON = np.linspace(30.0, 41.75, ROWS), np.linspace(100.0, 123.75, COLUMNS)
DX_KM = 0.25 * KM_PER_DEGREE * np.cos(np.deg2rad(LAT.mean()))
INITS = np.array(["2018-01-01T00", "2018-01-01T12", "2018-01-02T00"], "datetime64[h]")


@pytest.fixture
def store(tiny_store: Path) -> Store:
    """A store with a finer grid, of which only the mask and the coordinates are used."""
    static = {
        "mask": np.ones((ROWS, COLUMNS), np.float32),
        "elevation": np.zeros((ROWS, COLUMNS), np.float32),
    }
    return replace(open_store(tiny_store), lat=LAT, lon=LON, static=static)


def spectra_of(store: Store, truth: FloatArray, model: FloatArray) -> xr.Dataset:
    """Spectra of one pollutant at one horizon: fields (B, H, W)."""
    axes = ScoreAxes(FORECASTS, ("pm25",), (12,), INITS[:1].astype("datetime64[D]"), areas_of(store))
    accumulator = Spectra(axes, store, INITS)
    fields = dict.fromkeys(FORECASTS, truth[:, None, None]) | {MODEL: model[:, None, None]}
    wanted = np.broadcast_to(store.static["mask"] > 0, fields[MODEL].shape)
    accumulator.add(make_scored_batch(INITS, (12,), ("pm25",), fields, truth[:, None, None], wanted))
    return accumulator.tables()["spectra"]


def noise(seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).normal(50.0, 10.0, (INITS.size, ROWS, COLUMNS))


@pytest.mark.parametrize("cells", [6, 12])
def test_a_wave_has_its_power_at_its_wavelength(store: Store, cells: int) -> None:
    wave = np.broadcast_to(np.sin(2 * np.pi * np.arange(COLUMNS) / cells), (INITS.size, ROWS, COLUMNS))
    power = spectral_scores(spectra_of(store, wave, wave))["power"].sel(forecast=TRUTH).squeeze()
    assert float(power.idxmax("wavelength")) == pytest.approx(cells * DX_KM, rel=0.1)
    others = power.where(abs(np.log(power["wavelength"] / (cells * DX_KM))) > 0.3)
    assert others.max() < 0.01 * power.max()


def test_white_noise_has_the_same_power_at_all_wavelengths_and_that_of_its_variance(store: Store) -> None:
    power = spectral_scores(spectra_of(store, noise(), noise()))["power"].sel(forecast=TRUTH).squeeze()
    # Rings of long waves hold too few modes to show it.
    np.testing.assert_allclose(power[6:], 100.0, rtol=0.25)
    np.testing.assert_allclose(power[6:].mean(), 100.0, rtol=0.08)


def test_a_smoothed_forecast_is_told_from_a_sharp_one(store: Store) -> None:
    truth = noise(1)
    sharp = spectral_scores(spectra_of(store, truth, noise(2))).sel(forecast=MODEL).squeeze()
    assert sharp["short_waves"] == pytest.approx(1.0, abs=0.1)
    # Averaging along both axes over three cells leaves (1 + 2 cos(2 pi / n))^2 / 9 of a wave of n cells.
    smooth = sum(np.roll(truth, shift, axis=2) for shift in (-1, 0, 1)) / 3.0
    smooth = sum(np.roll(smooth, shift, axis=1) for shift in (-1, 0, 1)) / 3.0
    dull = spectral_scores(spectra_of(store, truth, smooth)).sel(forecast=MODEL).squeeze()
    assert dull["short_waves"] < 0.3
    assert dull["ratio"].isel(wavelength=0) == pytest.approx(1.0, abs=0.1)
    assert dull["resolved_km"] > 1.3 * sharp["resolved_km"]


def test_a_flat_forecast_resolves_nothing(store: Store) -> None:
    flat = spectral_scores(spectra_of(store, noise(), np.full_like(noise(), 30.0))).sel(forecast=MODEL)
    assert flat["resolved_km"].isnull().all()
    assert (flat["short_waves"] == 0.0).all()


def test_only_the_first_forecast_of_a_day_counts_and_only_complete_fields(store: Store) -> None:
    truth = noise()
    assert spectra_of(store, truth, truth)["fields"] == 2
    truth[0, 5, 5] = np.nan
    assert spectra_of(store, truth, noise())["fields"] == 1


def test_what_lies_outside_the_mask_does_not_matter(store: Store) -> None:
    store.static["mask"][:, :10] = 0.0
    truth = noise()
    before = spectra_of(store, truth, truth)
    truth[:, :, :10] = np.nan
    xr.testing.assert_identical(spectra_of(store, truth, np.nan_to_num(truth)), before)


def test_the_table_says_how_smooth_each_pollutant_is(store: Store) -> None:
    buffer = io.StringIO()
    Console(file=buffer, width=120).print(
        spectra_table(spectral_scores(spectra_of(store, noise(), noise(3))))
    )
    (row,) = [line.split() for line in buffer.getvalue().splitlines() if "PM2.5" in line]
    assert float(row[2]) == pytest.approx(1.0, abs=0.1)
