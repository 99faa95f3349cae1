"""What is simulated: the years, the domain and its grid, the seed and the switches of an experiment."""

import re
from calendar import isleap
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
"""Fields are float32. Shapes are written with T (hours), S (species), H (latitudes) and W (longitudes)."""

EARTH_RADIUS = 6.371e6
"""[m]"""

SMALLEST_GRID = 4
FIRST_YEAR, LAST_YEAR = 1970, 2200
LATITUDES = (0.0, 80.0)
"""Seasons, Coriolis force and westerlies are those of the northern hemisphere."""
LONGITUDES = (-180.0, 180.0)


def parse_grid(text: str) -> tuple[int, int]:
    """Read a grid written as `32x64`, rows (latitudes) first.

    Raises:
        ValueError: the text is not two whole numbers with an x in between.
    """
    match = re.fullmatch(r"(\d+)[x×](\d+)", text.strip().lower())
    if match is None:
        raise ValueError(
            f"the grid {text!r} cannot be read: write the number of latitudes, x, and the number of "
            "longitudes, for example --grid 32x64"
        )
    return int(match[1]), int(match[2])


@dataclass(frozen=True)
class Grid:
    """A regular latitude-longitude grid of cells, latitude ascending.

    Attributes:
        shape: (H, W), the number of cells along latitude and longitude.
        lat: southern and northern edge [degrees north].
        lon: western and eastern edge [degrees east].
    """

    shape: tuple[int, int]
    lat: tuple[float, float]
    lon: tuple[float, float]

    def __post_init__(self) -> None:
        if min(self.shape) < SMALLEST_GRID:
            height, width = self.shape
            raise ValueError(
                f"the grid {height}x{width} is too small: the simulator needs at least "
                f"{SMALLEST_GRID}x{SMALLEST_GRID} cells"
            )
        for name, (low, high), (lowest, highest) in (
            ("lat", self.lat, LATITUDES),
            ("lon", self.lon, LONGITUDES),
        ):
            if not lowest <= low < high <= highest:
                raise ValueError(
                    f"the domain --{name} {low:g} {high:g} is not possible: give the lower edge first, and "
                    f"both between {lowest:g} and {highest:g} degrees"
                )

    @cached_property
    def lat_edges(self) -> NDArray[np.float64]:
        """(H + 1,) [degrees north]."""
        return np.linspace(*self.lat, self.shape[0] + 1)

    @cached_property
    def lon_edges(self) -> NDArray[np.float64]:
        """(W + 1,) [degrees east]."""
        return np.linspace(*self.lon, self.shape[1] + 1)

    @cached_property
    def lat_centres(self) -> NDArray[np.float64]:
        """(H,) [degrees north]."""
        return (self.lat_edges[1:] + self.lat_edges[:-1]) / 2

    @cached_property
    def lon_centres(self) -> NDArray[np.float64]:
        """(W,) [degrees east]."""
        return (self.lon_edges[1:] + self.lon_edges[:-1]) / 2

    @cached_property
    def lat2d(self) -> NDArray[np.float64]:
        """(H, W) latitude of the cell centres [degrees north]."""
        return np.repeat(self.lat_centres[:, None], self.shape[1], axis=1)

    @cached_property
    def lon2d(self) -> NDArray[np.float64]:
        """(H, W) longitude of the cell centres [degrees east]."""
        return np.repeat(self.lon_centres[None, :], self.shape[0], axis=0)

    @cached_property
    def dx(self) -> NDArray[np.float64]:
        """(H, 1) west-east extent of a cell at its centre [m]."""
        step = np.radians(self.lon_edges[1] - self.lon_edges[0])
        width: NDArray[np.float64] = EARTH_RADIUS * step * np.cos(np.radians(self.lat_centres))
        return width[:, None]

    @cached_property
    def dy(self) -> float:
        """South-north extent of a cell [m]."""
        return float(EARTH_RADIUS * np.radians(self.lat_edges[1] - self.lat_edges[0]))

    @cached_property
    def area(self) -> NDArray[np.float64]:
        """(H, 1) area of a cell on the sphere [m2]."""
        step = np.radians(self.lon_edges[1] - self.lon_edges[0])
        area: NDArray[np.float64] = EARTH_RADIUS**2 * step * np.diff(np.sin(np.radians(self.lat_edges)))
        return area[:, None]

    @cached_property
    def south_edges(self) -> NDArray[np.float64]:
        """(H + 1, 1) length of the faces between a cell and its southern neighbour [m]."""
        step = np.radians(self.lon_edges[1] - self.lon_edges[0])
        length: NDArray[np.float64] = EARTH_RADIUS * step * np.cos(np.radians(self.lat_edges))
        return length[:, None]


@dataclass(frozen=True)
class World:
    """One simulated world; two equal worlds give the same bytes on the same machine.

    Attributes:
        years: calendar years (UTC) to simulate, ascending. A year that follows the one before it goes on from
            its last hour; any other starts after a spin-up.
        grid: (H, W).
        seed: draws the synoptic waves.
        lat: southern and northern edge of the domain [degrees north].
        lon: western and eastern edge of the domain [degrees east].
        flat: every height is 0 m; land and sea, cities and deserts stay where they are.
        ridge_blocking: multiplies the heights that air has to climb between cells; 0 lets it pass freely.
        wind_transport: whether the wind carries pollutants; without it they only diffuse between cells.
        wind_strength: multiplies the wind everywhere; 0 is calm for ever.
    """

    years: tuple[int, ...]
    grid: tuple[int, int] = (32, 64)
    seed: int = 0
    lat: tuple[float, float] = (17.0, 49.0)
    lon: tuple[float, float] = (72.0, 136.0)
    flat: bool = False
    ridge_blocking: float = 1.0
    wind_transport: bool = True
    wind_strength: float = 1.0

    def __post_init__(self) -> None:
        self.domain  # noqa: B018  (building the grid checks it)
        if not self.years or list(self.years) != sorted(set(self.years)):
            raise ValueError(
                f"the years {list(self.years)} cannot be simulated: give at least one, each once, ascending"
            )
        if self.years[0] < FIRST_YEAR or self.years[-1] > LAST_YEAR:
            raise ValueError(
                f"the years {list(self.years)} cannot be simulated: choose them between {FIRST_YEAR} and "
                f"{LAST_YEAR}"
            )
        if self.seed < 0:
            raise ValueError(f"the seed {self.seed} is negative: choose 0 or a positive whole number")
        for name in ("ridge_blocking", "wind_strength"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: choose 0 or a positive number")

    @property
    def days(self) -> int:
        """Days in all its years."""
        return sum(366 if isleap(year) else 365 for year in self.years)

    @cached_property
    def domain(self) -> Grid:
        """The grid on the sphere."""
        return Grid(self.grid, self.lat, self.lon)
