"""Places whose attention is shown: the most polluted one, cities, and those that somebody asks for."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aqtopo.data.store import Store
from aqtopo.inference.load import LoadedRun
from aqtopo.report.canvas import Canvas
from aqtopo.report.case import Case
from aqtopo.report.terrain import CITIES


@dataclass(frozen=True)
class Place:
    """A point by name: degrees north and east."""

    name: str
    lat: float
    lon: float


def parse_place(text: str) -> Place:
    """A place from `NAME=LAT,LON` in degrees, such as `Lanzhou=36.1,103.8`.

    Raises:
        ValueError: the text is not of that form.
    """
    name, _, position = text.rpartition("=")
    try:
        lat, lon = map(float, position.split(","))
    except ValueError as error:
        raise ValueError(
            f"the place {text!r} is not of the form NAME=LAT,LON in degrees. Write for example "
            "Lanzhou=36.1,103.8."
        ) from error
    if not name:
        raise ValueError(f"the place {text!r} needs a name before an equals sign, as in Lanzhou=36.1,103.8.")
    return Place(name, lat, lon)


def tokens_at(run: LoadedRun, case: Case, canvas: Canvas, wanted: Sequence[Place] = ()) -> dict[str, int]:
    """Raster index of tokens by the name of their place.

    Returns:
        The most polluted token at the start of the case, the places that are wanted, and the cities inside
        the scored area.

    Raises:
        ValueError: a place that is wanted is not on the grid, or its name is taken.
    """
    store, patch = run.store, run.config.model.patch
    found = {"Most polluted": most_polluted_token(case, patch)}
    for place in wanted:
        if place.name in found:
            raise ValueError(f"--place {place.name}: the name is taken by another place. Choose another one.")
        if canvas.place(place.lat, place.lon) is None:
            raise ValueError(
                f"--place {place.name}={place.lat:g},{place.lon:g} is not on the grid of {store.path} "
                f"({store.lat.min():g} to {store.lat.max():g} N, {store.lon.min():g} to {store.lon.max():g} "
                "E). Choose one that is."
            )
        found[place.name] = _token(*_cell(store, place), store, patch)
    for city in (Place(*city) for city in CITIES):
        cell = _cell(store, city)
        if canvas.place(city.lat, city.lon) is not None and store.static["mask"][cell] > 0:
            found.setdefault(city.name, _token(*cell, store, patch))
    return found


def most_polluted_token(case: Case, patch: int) -> int:
    """Raster index of the patch with the highest mean of the first pollutant at the start."""
    field = case.initial[0]
    tiles = field.reshape(field.shape[0] // patch, patch, field.shape[1] // patch, patch)
    known = np.isfinite(tiles).sum((1, 3))
    means = np.nansum(tiles, (1, 3)) / np.maximum(known, 1)
    return int(np.argmax(np.where(known == patch**2, means, -np.inf)))


def _cell(store: Store, place: Place) -> tuple[int, int]:
    """Row and column of the nearest cell."""
    return int(np.abs(store.lat - place.lat).argmin()), int(np.abs(store.lon - place.lon).argmin())


def _token(row: int, column: int, store: Store, patch: int) -> int:
    return row // patch * (len(store.lon) // patch) + column // patch
