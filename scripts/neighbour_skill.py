"""Skill that a linear forecast gains from neighbouring cells and from upwind air.

    python scripts/neighbour_skill.py data/ablation_ridges.zarr

Fits a ridge regression per cell on the first three years and scores it on the last. Output: mean squared
error of the six pollutants over the scored cells, in per cent of persistence's. It bounds what attention
to other cells can contribute.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.ndimage import map_coordinates

from aqtopo.data import Store, open_store
from aqtopo.data.store import shard_ranges
from aqtopo.model.geometry import EARTH_RADIUS_KM
from aqtopo.variables import HORIZONS_H, TARGET_VARIABLES

Fields = NDArray[np.floating]
MakeFeatures = Callable[[NDArray[np.int64]], Fields]

TRAINING_YEARS = 3
EVERY_H, TEST_EVERY_H = 7, 13
"""Hours between fitted and between scored samples; coprime to 24."""

NEIGHBOURS = (-2, 0, 2)
"""Offsets of the neighbours in both directions [cells]."""

TRAVEL_TIMES_H = (3, 6, 12, 24)
"""Travel times of the upwind air [h]."""

PENALTY = 10.0
"""Ridge penalty, in samples of variance 1."""


def own_cell(fields: Fields) -> Fields:
    """Return all channels of a cell and a constant (T, C + 1, H, W)."""
    return np.concatenate([fields, np.ones_like(fields[:, :1])], 1)


def neighbours(fields: Fields) -> Fields:
    """Return the channels of 8 surrounding cells (T, 8 C, H, W); edge cells are repeated."""
    padding, (rows, columns) = max(NEIGHBOURS), fields.shape[2:]
    width = (padding, padding)
    padded = np.pad(fields, ((0, 0), (0, 0), width, width), mode="edge")
    offsets = [(y + padding, x + padding) for y in NEIGHBOURS for x in NEIGHBOURS if y or x]
    return np.concatenate([padded[:, :, y : y + rows, x : x + columns] for y, x in offsets], 1)


def upwind(fields: Fields, wind: Fields, store: Store, pollutants: Sequence[int]) -> Fields:
    """Return the pollutants at upwind points (T, 6 travel times, H, W); steady wind (T, 2, H, W) [m/s]."""
    rows, columns = np.indices(fields.shape[2:])
    north_km = np.radians(store.lat[1] - store.lat[0]) * EARTH_RADIUS_KM
    east_km = np.radians(store.lon[1] - store.lon[0]) * EARTH_RADIUS_KM * np.cos(np.radians(store.lat))
    east, north = 3.6 * wind[:, 0] / east_km[:, None], 3.6 * wind[:, 1] / north_km  # cells an hour
    values = [
        [map_coordinates(hour[channel], at, order=1, mode="nearest") for channel in pollutants]
        for travel_h in TRAVEL_TIMES_H
        for hour, at in zip(
            fields, zip(rows - travel_h * north, columns - travel_h * east, strict=True), strict=True
        )
    ]
    shape = (len(TRAVEL_TIMES_H), len(fields), len(pollutants), *fields.shape[2:])
    stacked = np.asarray(values, np.float32).reshape(shape).swapaxes(0, 1)
    return stacked.reshape(len(fields), -1, *fields.shape[2:])


def squared_error(
    known: Fields, change: Fields, test: Fields, truth: Fields, cells: Fields
) -> tuple[float, float]:
    """Return the squared error of a regression per cell and of persistence, summed over all values.

    Args:
        known: (T, F, H, W) predictors of the fitted times.
        change: (T, 6, H, W) changes of the fitted times.
        test: (S, F, H, W) predictors of the scored times.
        truth: (S, 6, H, W) changes of the scored times.
        cells: (H, W) mask of the scored cells.
    """
    regression = persistence = 0.0
    for row, column in np.argwhere(cells):
        a, b = (part[:, :, row, column].astype(np.float64) for part in (known, test))
        weights = np.linalg.solve(
            a.T @ a + PENALTY * np.eye(a.shape[1]), a.T @ change[:, :, row, column].astype(np.float64)
        )
        here = truth[:, :, row, column]
        regression += float(np.square(b @ weights - here).sum())
        persistence += float(np.square(here).sum())
    return regression, persistence


def samples(store: Store) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices of fitted and scored hours."""
    years = store.years[TRAINING_YEARS], store.years[-1]
    split, test = (int(np.searchsorted(store.times, np.datetime64(f"{year}-01-01T00"))) for year in years)
    last = HORIZONS_H[-1]
    return np.arange(0, split - last, EVERY_H), np.arange(test, store.times.size - last, TEST_EVERY_H)


def relative_errors(store: Store) -> Iterator[tuple[str, int, list[float]]]:
    """Yield name, number and error [%] by horizon and overall of each set of predictors."""
    fields = np.concatenate([store.read_span(*span) for span in shard_ranges(store, store.years)])
    pollutants = [store.channels.index(name) for name in TARGET_VARIABLES]
    winds = [store.channels.index(name) for name in ("u", "v")]
    mean, std = (
        np.array([of[name] for name in store.channels], np.float32) for of in (store.mean, store.std)
    )
    normal = (fields - mean[:, None, None]) / std[:, None, None]
    makers: dict[str, MakeFeatures] = {
        "own cell": lambda hours: own_cell(normal[hours]),
        "+ neighbours": lambda hours: neighbours(normal[hours]),
        "+ upwind air": lambda hours: upwind(normal[hours], fields[hours][:, winds], store, pollutants),
    }
    fitted, scored = samples(store)
    known, test = (np.zeros((hours.size, 0, *fields.shape[2:]), np.float32) for hours in (fitted, scored))
    for name, make in makers.items():
        known, test = np.concatenate([known, make(fitted)], 1), np.concatenate([test, make(scored)], 1)
        errors = []
        for horizon in HORIZONS_H:
            change, truth = ((normal[h + horizon] - normal[h])[:, pollutants] for h in (fitted, scored))
            errors.append(squared_error(known, change, test, truth, store.static["mask"] > 0))
        errors.append((sum(err for err, _ in errors), sum(persists for _, persists in errors)))
        yield name, known.shape[1], [100 * err / persists for err, persists in errors]


def main() -> None:
    """Print a row for each set of predictors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("store", type=Path)
    store = open_store(parser.parse_args().store)
    if len(store.years) <= TRAINING_YEARS:
        parser.error(
            f"{store.path} has {len(store.years)} years. The fit needs {TRAINING_YEARS}, the score another."
        )
    table = Table(title="Mean squared error in % of persistence's")
    for column in ("predictors", "number", *(f"{hours} h" for hours in HORIZONS_H), "all"):
        table.add_column(column)
    for name, predictors, found in relative_errors(store):
        table.add_row(name, str(predictors), *(f"{share:.1f}" for share in found))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
