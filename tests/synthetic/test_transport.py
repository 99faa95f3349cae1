from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aqtopo.data.grid import Array
from aqtopo.data.topography import Topography
from aqtopo.synthetic.config import SimulationConfig
from aqtopo.synthetic.transport import (
    LEAST_OPEN,
    STRATIFICATION,
    Stencil,
    Transport,
    open_fraction,
    transport_hour,
)
from aqtopo.synthetic.weather import Weather

SHAPE = (12, 16)


def config(**changes: Any) -> SimulationConfig:
    return SimulationConfig(
        **{"years": (2016,), "grid": SHAPE, "lat": (20.0, 32.0), "lon": (100.0, 116.0), **changes}
    )


def topography_with_ridge(column: int, height: float) -> Topography:
    level = np.zeros(SHAPE, np.float32)
    ridge_x = np.zeros((SHAPE[0], SHAPE[1] - 1), np.float32)
    if column >= 0:
        ridge_x[:, column] = height
    return Topography(
        level, level, np.ones_like(level), ridge_x, np.zeros((SHAPE[0] - 1, SHAPE[1]), np.float32)
    )


FLAT = topography_with_ridge(-1, 0.0)


def wind(u: Array | float, v: Array | float, depth: float = 500.0) -> Weather:
    blank = np.zeros((1, *SHAPE), np.float32)
    fields = [np.broadcast_to(np.float32(x), blank.shape).copy() for x in (u, v)]
    return Weather(*fields, blank, blank, blank, blank, blank + np.float32(depth))


def step(content: Array, stencil: Stencil, hours: int = 1) -> Array:
    excess = content.astype(np.float32).copy()
    halo = np.zeros((len(excess), SHAPE[0] + 2, SHAPE[1] + 2), np.float32)
    for _ in range(hours):
        transport_hour(excess, stencil, 0, halo)
    return excess


def puff(row: int, column: int) -> Array:
    content = np.zeros((1, *SHAPE), np.float32)
    content[0, row, column] = 100.0
    return content


def mass(content: Array) -> float:
    return float((content * config().domain.area).sum(dtype=np.float64))


def top_share(u: Array, v: Array) -> Array:
    """Return the share (H, W) of a cell that converging wind exports through its top in an hour."""
    grid = config().domain
    u, v = np.pad(u, 1, mode="edge"), np.pad(v, 1, mode="edge")
    eastward = (u[1:-1, :-1] + u[1:-1, 1:]) / 2 * grid.dy
    northward = (v[:-1, 1:-1] + v[1:, 1:-1]) / 2 * grid.south_edges
    divergence = np.diff(eastward, axis=1) + np.diff(northward, axis=0)
    return np.maximum(-divergence, 0) * 3600 / grid.area


@settings(max_examples=25, deadline=None)
@given(st.floats(0.1, 15.0), st.integers(0, 2**16))
def test_mass_leaves_only_through_top_and_border(speed: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    u, v = (rng.normal(0, speed, SHAPE).astype(np.float32) for _ in range(2))
    stencil = Transport(config(), FLAT).stencil(wind(u, v))
    content = np.zeros((1, *SHAPE), np.float32)
    content[:, 1:-1, 1:-1] = rng.uniform(0, 50, (SHAPE[0] - 2, SHAPE[1] - 2))
    after = step(content, replace(stencil, substeps=1))
    through_top = mass(content * top_share(u, v)) / stencil.substeps
    assert mass(after) + through_top == pytest.approx(mass(content), rel=1e-5)


def test_a_uniform_wind_moves_mass_without_losing_any() -> None:
    stencil = Transport(config(), FLAT).stencil(wind(6.0, 0.0))
    before = puff(6, 5) + puff(4, 6)
    after = step(before, stencil, hours=4)
    assert mass(after) == pytest.approx(mass(before), rel=1e-3)


@pytest.mark.parametrize(
    ("u", "v", "axis", "sign"), [(8, 0, 1, 1), (-8, 0, 1, -1), (0, 8, 0, 1), (0, -8, 0, -1)]
)
def test_a_plume_moves_at_the_wind_speed(u: float, v: float, axis: int, sign: int) -> None:
    after = step(puff(6, 8), Transport(config(), FLAT).stencil(wind(u, v)), hours=6)[0]
    grid = config().domain
    places = np.indices(SHAPE)[axis] - (6, 8)[axis]
    cell = grid.dy if axis == 0 else float(grid.dx[6, 0])
    shift = float((after * places).sum() / after.sum()) * cell
    assert shift == pytest.approx(sign * 8 * 6 * 3600, rel=0.05)


def test_without_wind_transport_the_plume_stays() -> None:
    after = step(puff(6, 8), Transport(config(wind_transport=False), FLAT).stencil(wind(8, 0)), hours=6)[0]
    assert after[6, 8] > 85
    np.testing.assert_allclose(after[6, 7], after[6, 9], rtol=1e-5)


def test_a_ridge_blocks_a_plume_and_flat_land_does_not() -> None:
    def beyond(height: float, blocking: float = 1.0) -> float:
        transport = Transport(config(ridge_blocking=blocking), topography_with_ridge(8, height))
        return float(step(puff(6, 7), transport.stencil(wind(3.0, 0.0)), hours=12)[0, :, 9:].sum())

    assert beyond(2000.0) < 0.25 * beyond(0.0)
    assert beyond(400.0) > 0.25 * beyond(0.0)
    assert beyond(2000.0, blocking=0.0) == beyond(0.0)


def test_a_ridge_does_not_stop_the_flow_along_it() -> None:
    along = wind(0.0, 6.0)
    blocked = step(puff(3, 8), Transport(config(), topography_with_ridge(8, 3000.0)).stencil(along), hours=6)
    free = step(puff(3, 8), Transport(config(), FLAT).stencil(along), hours=6)
    assert blocked[0, 4:].sum() == pytest.approx(float(free[0, 4:].sum()), rel=0.02)


def test_pollution_accumulates_upwind_of_a_ridge() -> None:
    steady = np.zeros((1, *SHAPE), np.float32)
    barrier = Transport(config(), topography_with_ridge(8, 3000.0)).stencil(wind(3.0, 0.0))
    open_land = Transport(config(), FLAT).stencil(wind(3.0, 0.0))
    levels = []
    for stencil in (barrier, open_land):
        content = steady
        for _ in range(100):
            content = step(content, stencil)
            content[0, 6, 5] += 10.0
        levels.append(float(content[0, 6, 8]))
    assert levels[0] > 1.5 * levels[1]


def test_air_descends_a_step_more_easily_than_it_climbs() -> None:
    z = np.where(np.arange(SHAPE[1]) < 8, 2000.0, 0.0).astype(np.float32) * np.ones((SHAPE[0], 1), np.float32)
    topography = Topography(
        z, 0 * z, np.ones_like(z), np.maximum(z[:, 1:], z[:, :-1]), np.maximum(z[1:], z[:-1])
    )
    transport = Transport(config(), topography)
    down = step(puff(6, 7), transport.stencil(wind(3.0, 0.0)), hours=6)[0, :, 8:].sum()
    up = step(puff(6, 8), transport.stencil(wind(-3.0, 0.0)), hours=6)[0, :, :8].sum()
    assert down > 5 * up


@given(st.floats(0, 40, width=32), st.floats(120, 3500, width=32), st.floats(0, 6000, width=32))
def test_open_fraction_lies_between_gaps_and_fully_open(speed: float, depth: float, rise: float) -> None:
    value = float(open_fraction(*(np.array([x], np.float32) for x in (speed, depth, rise)))[0])
    assert LEAST_OPEN - 1e-6 <= value <= 1
    if rise <= speed / STRATIFICATION:
        assert value == pytest.approx(1, abs=1e-4)


def test_open_fraction_falls_with_the_ridge_and_rises_with_depth_and_wind() -> None:
    def fraction(speed: float, depth: float, rise: float) -> float:
        return float(open_fraction(*(np.array([x], np.float32) for x in (speed, depth, rise)))[0])

    assert fraction(3, 800, 400) > fraction(3, 800, 700) > fraction(3, 800, 900)
    assert fraction(3, 1500, 700) > fraction(3, 800, 700)
    assert fraction(6, 800, 700) > fraction(3, 800, 700)
    # 700 m of rise less the 250 m that 3 m/s can climb leave 450 m of the 900 m closed.
    assert fraction(3, 900, 700) == pytest.approx(0.5)


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 60), st.floats(-60, 60), st.integers(0, 2**16))
def test_any_wind_keeps_concentrations_positive_and_bounded(u: float, v: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    stencil = Transport(config(), FLAT).stencil(wind(u, v))
    content = rng.uniform(0, 100, (2, *SHAPE)).astype(np.float32)
    after = step(content, stencil, hours=3)
    assert after.min() >= 0
    assert after.max() <= 100.5


def test_air_that_enters_brings_the_background() -> None:
    full = np.full((1, *SHAPE), 50.0, np.float32)
    after = step(full, Transport(config(), FLAT).stencil(wind(8.0, 0.0)), hours=6)[0]
    assert after[:, 0].max() < 20
    np.testing.assert_allclose(after[3:-3, -1], 50.0, rtol=0.05)
