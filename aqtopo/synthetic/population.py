"""Approximate population and desert maps: Gaussians around real cities and deserts, on a rural background.

Only the order of magnitude is realistic.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aqtopo.data.grid import EARTH_RADIUS, Array, Grid
from aqtopo.data.topography import Topography


@dataclass(frozen=True)
class GaussianPatch:
    """Gaussian on the map: a city (weight: million people) or a desert (weight: bareness, 0-1)."""

    name: str
    lat: float
    lon: float
    weight: float
    spread_km: float


def _cities(*rows: tuple[str, float, float, float]) -> tuple[GaussianPatch, ...]:
    # The radius of a city grows with the square root of its population.
    return tuple(
        GaussianPatch(name, lat, lon, people, 25.0 + 6.0 * people**0.5) for name, lat, lon, people in rows
    )


CITIES = _cities(
    ("Beijing", 39.9, 116.4, 21.0),
    ("Tianjin", 39.1, 117.2, 14.0),
    ("Shijiazhuang", 38.0, 114.5, 10.5),
    ("Tangshan", 39.6, 118.2, 7.5),
    ("Baoding", 38.9, 115.5, 9.0),
    ("Handan", 36.6, 114.5, 9.0),
    ("Taiyuan", 37.9, 112.6, 5.0),
    ("Jinan", 36.7, 117.0, 8.5),
    ("Qingdao", 36.1, 120.4, 9.0),
    ("Zhengzhou", 34.7, 113.6, 11.0),
    ("Xuzhou", 34.3, 117.2, 8.5),
    ("Xi'an", 34.3, 108.9, 12.0),
    ("Lanzhou", 36.1, 103.8, 4.0),
    ("Xining", 36.6, 101.8, 2.3),
    ("Yinchuan", 38.5, 106.2, 2.3),
    ("Hohhot", 40.8, 111.7, 3.1),
    ("Urumqi", 43.8, 87.6, 3.6),
    ("Kashgar", 39.5, 76.0, 1.5),
    ("Lhasa", 29.7, 91.1, 0.8),
    ("Shanghai", 31.2, 121.5, 25.0),
    ("Nanjing", 32.1, 118.8, 9.0),
    ("Suzhou", 31.3, 120.6, 11.0),
    ("Hangzhou", 30.3, 120.2, 10.5),
    ("Hefei", 31.8, 117.2, 8.5),
    ("Wuhan", 30.6, 114.3, 12.0),
    ("Changsha", 28.2, 112.9, 8.5),
    ("Nanchang", 28.7, 115.9, 5.5),
    ("Chengdu", 30.7, 104.1, 18.0),
    ("Chongqing", 29.6, 106.5, 17.0),
    ("Guiyang", 26.6, 106.7, 4.8),
    ("Kunming", 25.0, 102.7, 7.5),
    ("Nanning", 22.8, 108.4, 7.5),
    ("Guangzhou", 23.1, 113.3, 24.0),
    ("Shenzhen", 22.6, 114.1, 18.0),
    ("Fuzhou", 26.1, 119.3, 7.5),
    ("Xiamen", 24.6, 118.1, 7.0),
    ("Taipei", 25.0, 121.5, 7.0),
    ("Shenyang", 41.8, 123.4, 8.5),
    ("Dalian", 39.0, 121.6, 6.5),
    ("Changchun", 43.9, 125.3, 7.0),
    ("Harbin", 45.8, 126.5, 9.5),
    ("Ulaanbaatar", 47.9, 106.9, 1.5),
    ("Seoul", 37.6, 127.0, 25.0),
    ("Busan", 35.2, 129.0, 7.5),
    ("Pyongyang", 39.0, 125.8, 3.0),
    ("Fukuoka", 33.6, 130.4, 5.5),
    ("Osaka", 34.7, 135.5, 18.0),
    ("Delhi", 28.6, 77.2, 29.0),
    ("Kanpur", 26.5, 80.3, 7.0),
    ("Lahore", 31.5, 74.3, 12.0),
    ("Patna", 25.6, 85.1, 8.0),
    ("Kolkata", 22.6, 88.4, 15.0),
    ("Dhaka", 23.8, 90.4, 20.0),
    ("Mumbai", 19.1, 72.9, 20.0),
    ("Kathmandu", 27.7, 85.3, 2.5),
    ("Hanoi", 21.0, 105.8, 8.0),
    ("Mandalay", 22.0, 96.1, 1.8),
    ("Almaty", 43.2, 76.9, 2.0),
)
"""Population in millions, rounded (UN World Urbanization Prospects 2018)."""

DESERTS = (
    GaussianPatch("Taklamakan", 39.0, 82.5, 1.0, 300.0),
    GaussianPatch("Gurbantunggut", 45.0, 88.0, 0.8, 170.0),
    GaussianPatch("Qaidam", 37.5, 94.0, 0.9, 170.0),
    GaussianPatch("Badain Jaran", 40.5, 102.0, 1.0, 230.0),
    GaussianPatch("Gobi", 43.5, 106.0, 1.0, 350.0),
    GaussianPatch("Mu Us", 38.8, 108.5, 0.5, 130.0),
    GaussianPatch("Otindag", 42.7, 114.0, 0.4, 150.0),
    GaussianPatch("Changtang", 33.5, 86.0, 0.5, 400.0),
    GaussianPatch("Thar", 27.0, 71.5, 0.9, 230.0),
)
"""Dust sources of Asia with approximate extents."""

RURAL_DENSITY = 480.0
"""People per km2 in a warm, humid lowland without cities."""


def desert_fraction(grid: Grid, topography: Topography) -> Array:
    """Return the share of bare, dry ground (H, W), 0-1; 0 over sea."""
    bare = sum((patch.weight * _gaussian(grid, patch, 1.0) for patch in DESERTS), np.zeros(grid.shape))
    return (np.minimum(bare, 1.0) * topography.land).astype(np.float32)


def population_density(grid: Grid, topography: Topography) -> Array:
    """Return people per km2 (H, W): none at sea, few at high elevation, in the cold and in deserts."""
    people = np.zeros(grid.shape)
    for city in CITIES:
        variance_km2 = city.spread_km**2 + _blur_km(grid) ** 2
        people += city.weight * 1e6 / (2 * np.pi * variance_km2) * _gaussian(grid, city, _blur_km(grid))
    lowland = np.exp(-np.maximum(topography.elevation, 0.0) / 900.0)
    warmth = 1 / (1 + np.exp((grid.lat2d - 42.0) / 3.0))
    rural = RURAL_DENSITY * lowland * warmth * (1 - desert_fraction(grid, topography))
    return ((people + rural) * topography.land).astype(np.float32)


def _blur_km(grid: Grid) -> float:
    """Return the standard deviation that averaging over a cell adds to a Gaussian [km]."""
    return float((grid.dx.mean() * grid.dy / 12) ** 0.5 / 1e3)


def _gaussian(grid: Grid, patch: GaussianPatch, blur_km: float) -> NDArray[np.float64]:
    """Return a Gaussian (H, W) of maximum 1."""
    north = EARTH_RADIUS / 1e3 * np.radians(grid.lat2d - patch.lat)
    east = EARTH_RADIUS / 1e3 * np.radians(grid.lon2d - patch.lon) * np.cos(np.radians(patch.lat))
    bell: NDArray[np.float64] = np.exp(-(north**2 + east**2) / (2 * (patch.spread_km**2 + blur_km**2)))
    return bell
