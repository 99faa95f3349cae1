import numpy as np
import pytest

from aqtopo.data.grid import Grid
from aqtopo.data.prepare.regrid import Regridder, points_per_side
from tests.data.prepare.raw import Values, lambert_grid

INSIDE = Grid((8, 12), (27.0, 41.0), (94.0, 114.0))


@pytest.fixture(scope="module")
def coarse(source_grid: tuple[Values, Values]) -> Regridder:
    return Regridder.between(*source_grid, INSIDE)


def test_linear_fields_are_exact(coarse: Regridder, source_grid: tuple[Values, Values]) -> None:
    lat, lon = source_grid
    regridded = coarse(2.0 + 0.3 * lat - 0.1 * lon)
    np.testing.assert_allclose(regridded, 2.0 + 0.3 * INSIDE.lat2d - 0.1 * INSIDE.lon2d, rtol=2e-7)


@pytest.mark.slow
def test_the_error_on_the_true_grid_is_that_of_bilinear_interpolation() -> None:
    lat, lon = lambert_grid(339, 432, 15e3)
    target = Grid((128, 256), (17.0, 49.0), (72.0, 136.0))
    regridder = Regridder.between(lat, lon, target)
    assert points_per_side(lat, lon, target) == 2
    waves = regridder(np.sin(lat / 2) * np.cos(lon / 3))
    truth = np.sin(target.lat2d / 2) * np.cos(target.lon2d / 3)
    whole = np.isclose(np.asarray(regridder.weights.sum(axis=1)).reshape(target.shape), 1.0)
    # Second derivatives are at most 1/4 and 1/9 a degree squared; source cells are 0.14 and 0.25 degrees
    # wide, and the mean over a cell of 0.25 degrees differs from its centre by as little.
    bound = (0.14**2 / 4 + 0.25**2 / 9) / 8 + (0.25**2 / 4 + 0.25**2 / 9) / 24
    assert np.abs(waves - truth)[whole].max() < bound
    assert 0.98 < whole.mean() < regridder.covered.mean() < 1.0


def test_missing_cells_affect_only_cells_that_use_them(
    coarse: Regridder, source_grid: tuple[Values, Values]
) -> None:
    lat, _ = source_grid
    full = np.stack([lat, lat**2])
    gapped = full.copy()
    gapped[0, 8:16, 10:20] = np.nan
    before, after = coarse(full), coarse(gapped)
    np.testing.assert_array_equal(after[1], before[1])
    lost = np.isnan(after[0])
    assert 0 < lost.sum() < lost.size
    # The mean of the remaining values stays in the range around the gap.
    assert np.abs(after[0] - before[0])[~lost].max() < 1.1
    touched = coarse(np.isnan(gapped[0]).astype(float)) > 0
    np.testing.assert_array_equal(after[0][~touched], before[0][~touched])
    assert np.isnan(coarse(np.full_like(lat, np.nan))).all()


def test_weights_are_non_negative_and_sum_to_one(coarse: Regridder) -> None:
    assert coarse.weights.data.min() >= 0
    np.testing.assert_allclose(np.asarray(coarse.weights.sum(axis=1)), 1.0)
    assert coarse.covered.all()


def test_cells_beyond_the_source_have_no_value(source_grid: tuple[Values, Values]) -> None:
    lat, lon = source_grid
    wide = Grid((8, 12), (5.0, 60.0), (60.0, 150.0))
    regridder = Regridder.between(lat, lon, wide)
    regridded = regridder(lat)
    np.testing.assert_array_equal(np.isfinite(regridded), regridder.covered)
    assert 0 < regridder.covered.sum() < regridder.covered.size


def test_longitudes_may_be_counted_from_0_to_360(source_grid: tuple[Values, Values]) -> None:
    lat, lon = source_grid
    here = Regridder.between(lat, lon - 110.0, Grid((8, 12), (27.0, 41.0), (-16.0, 4.0)))
    there = Regridder.between(lat, (lon - 110.0) % 360.0, Grid((8, 12), (27.0, 41.0), (-16.0, 4.0)))
    np.testing.assert_allclose(here(lat), there(lat), rtol=1e-12)


def test_a_target_outside_the_source_is_refused(source_grid: tuple[Values, Values]) -> None:
    with pytest.raises(ValueError, match="lies outside the source grid"):
        Regridder.between(*source_grid, Grid((4, 4), (30.0, 40.0), (-60.0, -50.0)))
