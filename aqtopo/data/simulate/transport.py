"""Transport between grid cells: upwind advection and diffusion through faces that ridges partly close.

The scheme is the first-order upwind (donor cell) scheme in flux form on the sphere. Because it is linear in
the concentration and the same for all species, a step is a five-point stencil; the stencils of a day of hours
are computed together, and a step is five multiplications for the whole stack of species.

What moves is the excess of a species over a uniform background, so a uniform field stays uniform whatever the
wind does, and the air that enters through the sides of the domain or from aloft brings an excess of zero.
"""

from dataclasses import dataclass
from math import ceil

import numpy as np

from aqtopo.data.simulate.terrain import Terrain
from aqtopo.data.simulate.weather import Weather
from aqtopo.data.simulate.world import Array, Grid, World

HOUR_S = 3600.0
STRATIFICATION = 0.012
"""Buoyancy frequency of the lower troposphere [s-1]."""
LEAST_OPEN = 0.03
"""Share of a face that gaps below the grid's resolution always leave open."""
VENTED = 0.4
"""Share of the pollutant in the air held back by a ridge that slope winds lift out of the mixed layer; the
rest sinks back into it."""
MIXING = 1.5e4
"""Horizontal eddy diffusivity [m2 s-1]; upwind differences add their own."""
LARGEST_OUTFLOW = 0.9
"""Share of a cell that may leave it in one substep; 1 is the limit of stability and positivity."""


@dataclass(frozen=True)
class Stencil:
    """What T hours of wind do to the cells, in shares of a cell's content, each (T, H, W).

    Attributes:
        stay: what remains in a cell in one substep.
        west: what comes from the western neighbour.
        east: what comes from the eastern neighbour.
        south: what comes from the southern neighbour.
        north: what comes from the northern neighbour.
        substeps: steps that make an hour.
    """

    stay: Array
    west: Array
    east: Array
    south: Array
    north: Array
    substeps: int


@dataclass(frozen=True)
class _Axis:
    """Flow through the faces along one axis, moved to the last: faces are (..., n + 1) for n cells.

    Attributes:
        forward: volume to the next cell, per unit depth [m2 h-1], mixing included.
        backward: volume to the previous cell [m2 h-1].
        free: net volume that would flow if nothing were closed, positive forward [m2 h-1].
    """

    forward: Array
    backward: Array
    free: Array


def open_fraction(speed: Array, depth: Array, rise: Array) -> Array:
    """Share of the mixed layer that passes over a ridge.

    Sheppard's dividing streamline (Q. J. R. Meteorol. Soc. 82, 1956, 528): in air of stratification N, a wind
    of speed U has the kinetic energy to climb U / N, so the lowest `rise - U / N` metres cannot pass.

    Args:
        speed: wind across the face [m s-1], of either sign.
        depth: of the mixed layer on the upwind side [m].
        rise: height of the ridge above the ground on the upwind side [m], not negative.
    """
    blocked = (rise - np.abs(speed) / np.float32(STRATIFICATION)) / depth
    passing: Array = 1 - np.clip(blocked, 0.0, np.float32(1 - LEAST_OPEN))
    return passing


class Transport:
    """Stencils for the winds over one terrain."""

    def __init__(self, world: World, terrain: Terrain) -> None:
        grid, heights = world.domain, terrain.elevation
        self._wind_transport = world.wind_transport
        self._grid: Grid = grid
        self._area = grid.area.astype(np.float32)
        blocking = np.float32(world.ridge_blocking)
        self._rise_x = _rises(blocking * heights, blocking * terrain.ridge_x)
        self._rise_y = _rises(blocking * heights.T, blocking * terrain.ridge_y.T)

    def stencil(self, weather: Weather) -> Stencil:
        """Turn T hours of wind into transport."""
        scale = np.float32(self._wind_transport)
        grid, turn = self._grid, (0, 2, 1)
        length_x = np.full(1, grid.dy, np.float32)
        length_y = grid.south_edges[:, 0].astype(np.float32)
        mixing_x = (MIXING * HOUR_S * grid.dy / grid.dx).astype(np.float32)
        mixing_y = (MIXING * HOUR_S * grid.south_edges[:, 0] / grid.dy).astype(np.float32)
        x = _through(scale * weather.u, weather.depth, self._rise_x, length_x, mixing_x)
        turned = weather.depth.transpose(turn)
        y = _through(scale * weather.v.transpose(turn), turned, self._rise_y, length_y, mixing_y)
        return _combine(x, _Axis(*(a.transpose(turn) for a in (y.forward, y.backward, y.free))), self._area)


def _rises(heights: Array, ridge: Array) -> tuple[Array, Array]:
    """(H, W + 1) what air has to climb at each face along the last axis, going forward and backward [m]."""
    edge = ((0, 0), (1, 1))
    forward = np.pad(np.maximum(ridge - heights[:, :-1], 0.0), edge)
    backward = np.pad(np.maximum(ridge - heights[:, 1:], 0.0), edge)
    return forward, backward


def _through(wind: Array, depth: Array, rises: tuple[Array, Array], length: Array, mixing: Array) -> _Axis:
    """Volumes through the faces along the last axis in an hour."""
    edge = ((0, 0), (0, 0), (1, 1))
    wind, depth = np.pad(wind, edge, mode="edge"), np.pad(depth, edge, mode="edge")
    speed = (wind[..., :-1] + wind[..., 1:]) / 2
    onward = speed > 0
    upwind_depth = np.where(onward, depth[..., :-1], depth[..., 1:])
    passing = open_fraction(speed, upwind_depth, np.where(onward, *rises))
    free = speed * length * np.float32(HOUR_S)
    flow, exchange = passing * free, passing * mixing
    return _Axis(np.maximum(flow, 0) + exchange, np.maximum(-flow, 0) + exchange, free)


def _combine(x: _Axis, y: _Axis, area: Array) -> Stencil:
    """Shares of a cell's content, from the volumes through its four faces and its lid.

    Where the wind converges, air leaves through the lid with what it carries; where it diverges, clean air
    comes down. Where a ridge holds air back, the part `VENTED` of its load leaves in the same way.
    """
    out = x.forward[..., 1:] + x.backward[..., :-1] + y.forward[:, 1:] + y.backward[:, :-1]
    converging = -(x.free[..., 1:] - x.free[..., :-1] + y.free[:, 1:] - y.free[:, :-1])
    held = _held(x.forward, x.backward, x.free, axis=2) + _held(y.forward, y.backward, y.free, axis=1)
    lost = (out + np.maximum(converging, 0) + np.float32(VENTED) * held) / area
    substeps = max(1, ceil(float(lost.max()) / LARGEST_OUTFLOW))
    share = np.float32(1 / substeps)
    per_area = share / area
    return Stencil(
        stay=1 - lost * share,
        west=x.forward[..., :-1] * per_area,
        east=x.backward[..., 1:] * per_area,
        south=y.forward[:, :-1] * per_area,
        north=y.backward[:, 1:] * per_area,
        substeps=substeps,
    )


def _held(forward: Array, backward: Array, free: Array, axis: int) -> Array:
    """(T, H, W) volume that ridges keep from leaving a cell through its faces along `axis` [m2 h-1]."""
    kept = np.abs(free) - np.abs(forward - backward)
    ahead = np.where(free > 0, kept, 0)
    behind = kept - ahead
    faces = free.shape[axis]
    lost: Array = ahead.take(range(1, faces), axis) + behind.take(range(faces - 1), axis)
    return lost


def advance(excess: Array, stencil: Stencil, hour: int, halo: Array) -> None:
    """Move the excess of all species through one hour, in place.

    Args:
        excess: (S, H, W) concentration above the background [ug m-3].
        stencil: of T hours.
        hour: index of the hour in the stencil.
        halo: (S, H + 2, W + 2) work space whose border is zero and stays so.
    """
    centre = halo[:, 1:-1, 1:-1]
    for _ in range(stencil.substeps):
        centre[...] = excess
        excess *= stencil.stay[hour]
        excess += halo[:, 1:-1, :-2] * stencil.west[hour]
        excess += halo[:, 1:-1, 2:] * stencil.east[hour]
        excess += halo[:, :-2, 1:-1] * stencil.south[hour]
        excess += halo[:, 2:, 1:-1] * stencil.north[hour]
