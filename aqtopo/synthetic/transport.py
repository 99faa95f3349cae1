"""Transport between cells: upwind advection and diffusion through faces that ridges partly block.

First-order upwind (donor cell) scheme in flux form on the sphere. It is linear in the concentration and equal
for all species, so a step is a five-point stencil. The stencils of a day are computed together; a step is
five multiplications of the stacked species.

The transported quantity is the excess over a uniform background: a uniform field stays uniform in any wind,
and air that enters through the sides or the top has zero excess.
"""

from dataclasses import dataclass
from math import ceil

import numpy as np

from aqtopo.data.grid import Array, Grid
from aqtopo.data.topography import Topography
from aqtopo.synthetic.config import SimulationConfig
from aqtopo.synthetic.weather import Weather

SECONDS_PER_HOUR = 3600.0
STRATIFICATION = 0.012
"""Buoyancy frequency of the lower troposphere [s-1]."""
LEAST_OPEN = 0.03
"""Share of a face that unresolved gaps keep open."""
VENTED = 0.4
"""Share of the blocked pollutant that slope winds vent from the mixed layer; the rest returns to it."""
MIXING = 1.5e4
"""Horizontal eddy diffusivity [m2 s-1], in addition to the scheme's numerical diffusion."""
LARGEST_OUTFLOW = 0.9
"""Maximum share of a cell that leaves it in a substep; 1 is the limit of stability and positivity."""


@dataclass(frozen=True)
class Stencil:
    """Transport of T hours as shares of a cell's content, each (T, H, W).

    Attributes:
        stay: share that remains in the cell in one substep.
        west, east, south, north: inflow from that neighbour.
        substeps: number of substeps per hour.
    """

    stay: Array
    west: Array
    east: Array
    south: Array
    north: Array
    substeps: int


@dataclass(frozen=True)
class _Axis:
    """Flow through the faces along one axis, which is last: (..., n + 1) faces of n cells.

    Attributes:
        forward: volume to the next cell, per unit depth [m2 h-1], diffusion included.
        backward: volume to the previous cell [m2 h-1].
        free: net volume without blocking, positive forward [m2 h-1].
    """

    forward: Array
    backward: Array
    free: Array


def open_fraction(speed: Array, depth: Array, rise: Array) -> Array:
    """Return the share of the mixed layer that passes over a ridge.

    Sheppard's dividing streamline (Q. J. R. Meteorol. Soc. 82, 1956, 528): at stratification N, wind of
    speed U can climb U / N, so the lowest `rise - U / N` metres are blocked.

    Args:
        speed: wind across the face [m s-1], of either sign.
        depth: mixed-layer depth on the upwind side [m].
        rise: height of the ridge above the upwind ground [m], not negative.
    """
    blocked = (rise - np.abs(speed) / np.float32(STRATIFICATION)) / depth
    return 1 - np.clip(blocked, 0.0, np.float32(1 - LEAST_OPEN))


class Transport:
    """Transport stencils over one topography."""

    def __init__(self, config: SimulationConfig, topography: Topography) -> None:
        self._grid: Grid = config.domain
        elevation = topography.elevation
        self._wind_transport = config.wind_transport
        self._area = self._grid.area.astype(np.float32)
        blocking = np.float32(config.ridge_blocking)
        self._rise_x = _rises(blocking * elevation, blocking * topography.ridge_x)
        self._rise_y = _rises(blocking * elevation.T, blocking * topography.ridge_y.T)

    def stencil(self, weather: Weather) -> Stencil:
        """Compute the stencils of T hours."""
        scale = np.float32(self._wind_transport)
        grid, turn = self._grid, (0, 2, 1)
        length_x = np.full(1, grid.dy, np.float32)
        length_y = grid.south_edges[:, 0].astype(np.float32)
        mixing_x = (MIXING * SECONDS_PER_HOUR * grid.dy / grid.dx).astype(np.float32)
        mixing_y = (MIXING * SECONDS_PER_HOUR * grid.south_edges[:, 0] / grid.dy).astype(np.float32)
        x = _through(scale * weather.u, weather.depth, self._rise_x, length_x, mixing_x)
        turned = weather.depth.transpose(turn)
        y = _through(scale * weather.v.transpose(turn), turned, self._rise_y, length_y, mixing_y)
        return _combine(x, _Axis(*(a.transpose(turn) for a in (y.forward, y.backward, y.free))), self._area)


def _rises(elevation: Array, ridge: Array) -> tuple[Array, Array]:
    """Return the rise (H, W + 1) [m] at each face along the last axis, forward and backward."""
    edge = ((0, 0), (1, 1))
    forward = np.pad(np.maximum(ridge - elevation[:, :-1], 0.0), edge)
    backward = np.pad(np.maximum(ridge - elevation[:, 1:], 0.0), edge)
    return forward, backward


def _through(wind: Array, depth: Array, rises: tuple[Array, Array], length: Array, mixing: Array) -> _Axis:
    """Return the hourly volumes through the faces along the last axis."""
    edge = ((0, 0), (0, 0), (1, 1))
    wind, depth = np.pad(wind, edge, mode="edge"), np.pad(depth, edge, mode="edge")
    speed = (wind[..., :-1] + wind[..., 1:]) / 2
    onward = speed > 0
    upwind_depth = np.where(onward, depth[..., :-1], depth[..., 1:])
    passing = open_fraction(speed, upwind_depth, np.where(onward, *rises))
    free = speed * length * np.float32(SECONDS_PER_HOUR)
    flow, exchange = passing * free, passing * mixing
    return _Axis(np.maximum(flow, 0) + exchange, np.maximum(-flow, 0) + exchange, free)


def _combine(x: _Axis, y: _Axis, area: Array) -> Stencil:
    """Combine the volumes through the four faces and the top of the cells into a stencil.

    Converging wind exports air and its pollutants through the top; diverging wind imports background air. Of
    blocked pollutant, the share `VENTED` also leaves through the top.
    """
    out = x.forward[..., 1:] + x.backward[..., :-1] + y.forward[:, 1:] + y.backward[:, :-1]
    converging = -(x.free[..., 1:] - x.free[..., :-1] + y.free[:, 1:] - y.free[:, :-1])
    blocked = _blocked(x.forward, x.backward, x.free, axis=2) + _blocked(
        y.forward, y.backward, y.free, axis=1
    )
    lost = (out + np.maximum(converging, 0) + np.float32(VENTED) * blocked) / area
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


def _blocked(forward: Array, backward: Array, free: Array, axis: int) -> Array:
    """Return the volume (T, H, W) that ridges block at a cell's faces along `axis` [m2 h-1]."""
    kept = np.abs(free) - np.abs(forward - backward)
    ahead = np.where(free > 0, kept, 0)
    behind = kept - ahead
    faces = free.shape[axis]
    lost: Array = ahead.take(range(1, faces), axis) + behind.take(range(faces - 1), axis)
    return lost


def transport_hour(excess: Array, stencil: Stencil, hour: int, halo: Array) -> None:
    """Transport the excess of all species for one hour, in place.

    Args:
        excess: (S, H, W) concentration above the background [ug m-3].
        stencil: T hours.
        hour: index of the hour in the stencil.
        halo: (S, H + 2, W + 2) work array with a zero border, which stays zero.
    """
    centre = halo[:, 1:-1, 1:-1]
    for _ in range(stencil.substeps):
        centre[...] = excess
        excess *= stencil.stay[hour]
        excess += halo[:, 1:-1, :-2] * stencil.west[hour]
        excess += halo[:, 1:-1, 2:] * stencil.east[hour]
        excess += halo[:, :-2, 1:-1] * stencil.south[hour]
        excess += halo[:, 2:, 1:-1] * stencil.north[hour]
