"""What a linear forecast gains from neighbouring cells, and from the air that the wind brings.

    python scripts/neighbours_worth.py data/ablation_ridges.zarr

A ridge regression for each cell, fitted on the first three years and scored on the last: mean squared error
of the six pollutants over the scored cells, in per cent of persistence's. It is no forecast to be proud of;
it tells what there is to be found beside a cell, and so what attention could be worth.
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
from aqtopo.data.walk import spans
from aqtopo.model.geometry import EARTH_RADIUS_KM
from aqtopo.variables import HORIZONS_H, TARGET_VARIABLES

Fields = NDArray[np.floating]
Made = Callable[[NDArray[np.int64]], Fields]

TRAINING_YEARS = 3
EVERY_H, TEST_EVERY_H = 7, 13
"""Hours between the samples that are fitted and scored; coprime to a day's."""

NEIGHBOURS = (-2, 0, 2)
"""Cells away, in either direction."""

TRAVELS_H = (3, 6, 12, 24)
"""How long ago the air left where it is looked up [h]."""

PENALTY = 10.0
"""Added to the diagonal of the normal equations, in samples of variance 1."""


def own_cell(fields: Fields) -> Fields:
    """(T, C + 1, H, W) everything that is known of a cell, and a constant."""
    return np.concatenate([fields, np.ones_like(fields[:, :1])], 1)


def neighbours(fields: Fields) -> Fields:
    """(T, 8 C, H, W) the same of the cells around it; those beyond the edge are the edge's."""
    reach, (rows, columns) = max(NEIGHBOURS), fields.shape[2:]
    wide = np.pad(fields, ((0, 0), (0, 0), (reach, reach), (reach, reach)), mode="edge")
    moves = [(y + reach, x + reach) for y in NEIGHBOURS for x in NEIGHBOURS if y or x]
    return np.concatenate([wide[:, :, y : y + rows, x : x + columns] for y, x in moves], 1)


def brought(fields: Fields, wind: Fields, store: Store, pollutants: Sequence[int]) -> Fields:
    """(T, 6 travels, H, W) the pollutants where the air was; wind (T, 2, H, W) [m/s], taken as steady."""
    rows, columns = np.indices(fields.shape[2:])
    north_km = np.radians(store.lat[1] - store.lat[0]) * EARTH_RADIUS_KM
    east_km = np.radians(store.lon[1] - store.lon[0]) * EARTH_RADIUS_KM * np.cos(np.radians(store.lat))
    east, north = 3.6 * wind[:, 0] / east_km[:, None], 3.6 * wind[:, 1] / north_km  # cells an hour
    found = [
        [map_coordinates(hour[channel], at, order=1, mode="nearest") for channel in pollutants]
        for travel in TRAVELS_H
        for hour, at in zip(
            fields, zip(rows - travel * north, columns - travel * east, strict=True), strict=True
        )
    ]
    shape = (len(TRAVELS_H), len(fields), len(pollutants), *fields.shape[2:])
    stacked = np.asarray(found, np.float32).reshape(shape).swapaxes(0, 1)
    return stacked.reshape(len(fields), -1, *fields.shape[2:])


def squared_error(
    known: Fields, change: Fields, test: Fields, truth: Fields, cells: Fields
) -> tuple[float, float]:
    """Of a regression for each cell, and of persistence, each summed over cells, times and pollutants.

    Args:
        known: (T, F, H, W) predictors of the times that are fitted.
        change: (T, 6, H, W) what is to be told of them.
        test: (S, F, H, W) predictors of the times that are scored.
        truth: (S, 6, H, W) what came of these.
        cells: (H, W) which cells are scored.
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
    """Indices of the hours that are fitted and scored."""
    years = store.years[TRAINING_YEARS], store.years[-1]
    split, test = (int(np.searchsorted(store.times, np.datetime64(f"{year}-01-01T00"))) for year in years)
    last = HORIZONS_H[-1]
    return np.arange(0, split - last, EVERY_H), np.arange(test, store.times.size - last, TEST_EVERY_H)


def shares(store: Store) -> Iterator[tuple[str, int, list[float]]]:
    """For each set of predictors its name, their number, and the error by horizon and over all [%]."""
    fields = np.concatenate([store.read_span(*span) for span in spans(store, store.years)])
    pollutants = [store.channels.index(name) for name in TARGET_VARIABLES]
    winds = [store.channels.index(name) for name in ("u", "v")]
    mean, std = (
        np.array([of[name] for name in store.channels], np.float32) for of in (store.mean, store.std)
    )
    normal = (fields - mean[:, None, None]) / std[:, None, None]
    makers: dict[str, Made] = {
        "its own cell": lambda hours: own_cell(normal[hours]),
        "and its neighbours": lambda hours: neighbours(normal[hours]),
        "and the air that comes": lambda hours: brought(
            normal[hours], fields[hours][:, winds], store, pollutants
        ),
    }
    of_fitted, of_scored = samples(store)
    known, test = (
        np.zeros((hours.size, 0, *fields.shape[2:]), np.float32) for hours in (of_fitted, of_scored)
    )
    for name, make in makers.items():
        known, test = np.concatenate([known, make(of_fitted)], 1), np.concatenate([test, make(of_scored)], 1)
        errors = []
        for horizon in HORIZONS_H:
            change, truth = ((normal[h + horizon] - normal[h])[:, pollutants] for h in (of_fitted, of_scored))
            errors.append(squared_error(known, change, test, truth, store.static["mask"] > 0))
        errors.append((sum(err for err, _ in errors), sum(persists for _, persists in errors)))
        yield name, known.shape[1], [100 * err / persists for err, persists in errors]


def main() -> None:
    """Print the table, a row a set of predictors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("store", type=Path)
    store = open_store(parser.parse_args().store)
    if len(store.years) <= TRAINING_YEARS:
        parser.error(
            f"{store.path} has {len(store.years)} years: {TRAINING_YEARS} are fitted, another is scored"
        )
    table = Table(title="Mean squared error in % of persistence's")
    for column in ("a cell is forecast from", "predictors", *(f"{hours} h" for hours in HORIZONS_H), "all"):
        table.add_column(column)
    for name, predictors, found in shares(store):
        table.add_row(name, str(predictors), *(f"{share:.1f}" for share in found))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
