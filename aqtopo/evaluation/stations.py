"""Scores at stations: observations from a CSV, and forecasts interpolated bilinearly.

Shapes: F forecast, B initial time, K horizon, C pollutant, S station, H x W grid.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from aqtopo.data.channels import count_outside, possible_range
from aqtopo.data.levels import implausible_level, level
from aqtopo.data.names import plain_name
from aqtopo.data.schema import Hours
from aqtopo.data.store import Store
from aqtopo.data.units import UnitsError, conversion
from aqtopo.distributed.process_group import RankGroup
from aqtopo.evaluation.observations import read_observations
from aqtopo.evaluation.points import CLIMATOLOGY, ScoredBatch
from aqtopo.evaluation.scores import ERRORS, all_reduce, error_terms
from aqtopo.variables import Variable, Variables

LOWEST_OBSERVED = -90.0
"""Lowest valid value [ug m-3]: clean air gives values slightly below zero; -99 and -999 mean missing."""


@dataclass(frozen=True, eq=False)
class Stations:
    """Stations inside grid and mask, with their observations.

    Attributes:
        observed: (time, pollutant, station) in the store's units, NaN where missing, with `lat`
            and `lon` along `station`; hours ascending.
        outside: ids beyond the outermost cell centres.
        masked: ids with a cell outside the mask among the four around them.
        ignored: pollutants in the file that are not forecast.
        kept: number of values outside the valid range, such as small negative ones, by pollutant.
    """

    observed: xr.DataArray
    outside: tuple[str, ...]
    masked: tuple[str, ...]
    ignored: tuple[str, ...]
    kept: Mapping[str, int]


def read_stations(path: Path, store: Store, pollutants: Sequence[str]) -> Stations:
    """Read observations, one per line: id, lat, lon, time, pollutant, value.

    Args:
        path: the file, see `read_observations`; values without units are in those of the store (ug m-3,
            including carbon monoxide), and longitudes are compared modulo 360.
        store: the grid.
        pollutants: short names of the forecast pollutants.

    Raises:
        ValueError: the file cannot be read, lacks a column, repeats or contradicts itself, or has no
            value to score.
    """
    table, ignored = _read_table(path, pollutants, store.variables)
    # To the store's convention, -180..180 or 0..360.
    table["lon"] -= 360.0 * np.round((table["lon"] - store.lon.mean()) / 360.0)
    places = _places(path, table)
    values = table.set_index(["time", "pollutant", "id"])["value"].to_xarray().rename(id="station")
    values = values.reindex(pollutant=list(pollutants))
    values = values.assign_coords(
        {axis: ("station", places.loc[values["station"].values, axis].to_numpy()) for axis in ("lat", "lon")}
    )
    _check_level(path, values, store)
    on_grid, usable = _reachable(values, store)
    names = values["station"].values.astype(str)
    if not usable.any():
        raise ValueError(
            f"none of the {names.size} stations in {path} is inside the grid and mask of {store.path} "
            f"({store.lat.min():g} to {store.lat.max():g} N, {store.lon.min():g} to {store.lon.max():g} E). "
            "Check the columns lat and lon."
        )
    observed = values.isel(station=usable)
    kept = {
        name: count_outside(store.variables[name], observed.sel(pollutant=name).values) for name in pollutants
    }
    return Stations(
        observed=observed,
        outside=tuple(names[~on_grid].tolist()),
        masked=tuple(names[on_grid & ~usable].tolist()),
        ignored=ignored,
        kept=kept,
    )


def _reachable(places: xr.DataArray, store: Store) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the stations (S,) between four cells, and those (S,) between four cells of the mask."""
    inside = xr.DataArray(
        np.where(store.static["mask"] > 0, 1.0, np.nan),
        dims=("lat", "lon"),
        coords={"lat": store.lat, "lon": store.lon},
    )
    at = {axis: places[axis] for axis in ("lat", "lon")}
    return inside.fillna(1.0).interp(at).notnull().values, inside.interp(at).notnull().values


def _read_table(
    path: Path, pollutants: Sequence[str], variables: Variables
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return the lines of `pollutants` with a value, and the names of the other pollutants."""
    table = read_observations(path)
    plain = {plain_name(name): name for name in pollutants}
    table["pollutant"] = [plain.get(plain_name(name), name) for name in table["pollutant"]]
    ours = table["pollutant"].isin(list(pollutants))
    ignored = tuple(sorted(table["pollutant"][~ours].unique()))
    kept = table[ours & table["value"].notna()]
    if kept.empty:
        raise ValueError(
            f"{path} has no value of {', '.join(pollutants)}; its pollutants are "
            f"{', '.join(ignored) or 'none'}. Use the run's names."
        )
    return _in_store_units(path, kept.copy(), variables), ignored


def _in_store_units(path: Path, table: pd.DataFrame, variables: Variables) -> pd.DataFrame:
    """Convert the values, and refuse units that cannot be converted and impossible values, by line."""
    given = table["value"].copy()
    for (pollutant, units), rows in table[table["units"] != ""].groupby(["pollutant", "units"], sort=False):
        wanted = variables[str(pollutant)].units
        try:
            change = conversion(str(units), wanted)
            if change.needs_density:
                raise UnitsError(f"{units!r} is a ratio of masses. Convert the values to {wanted!r}")
        except UnitsError as error:
            line = rows.index[0]
            raise ValueError(f"{path}, line {line} has {pollutant} in unusable units: {error}.") from error
        table.loc[rows.index, "value"] = change(rows["value"])
    ranges = {name: _possible(variables[name]) for name in set(table["pollutant"])}
    lowest, highest = (table["pollutant"].map({n: pair[at] for n, pair in ranges.items()}) for at in (0, 1))
    wrong = (table["value"] < lowest) | (table["value"] > highest)
    if wrong.any():
        line = wrong.idxmax()
        first = table.loc[line]
        units = variables[first["pollutant"]].units
        raise ValueError(
            f"{path} has {wrong.sum()} of {wrong.size} values that are impossible, the first in line {line}: "
            f"{first['pollutant']} = {given[line]:g} {first['units'] or units} at the station "
            f"{first['id']}. Leave missing values empty, and name units other than {units} in a column "
            "`units`."
        )
    return table


def _possible(variable: Variable) -> tuple[float, float]:
    """Return the lowest and highest possible observation."""
    lowest = LOWEST_OBSERVED if variable.units == "ug m-3" else possible_range(variable)[0]
    return lowest, variable.valid_range[1]


def _places(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Return latitude and longitude by id."""
    repeated = table[table.duplicated(["id", "time", "pollutant"])]
    if len(repeated):
        first = repeated.iloc[0]
        raise ValueError(
            f"{path} has more than one value of {first['pollutant']} at the station {first['id']} for "
            f"{first['time']}. Keep one."
        )
    by_id = table.groupby("id")[["lat", "lon"]]
    moved = (by_id.nunique() > 1).any(axis=1)
    if moved.any():
        raise ValueError(
            f"{path} has several positions for the station {moved.idxmax()}. Give each position a unique id."
        )
    return by_id.first()


def _check_level(path: Path, values: xr.DataArray, store: Store) -> None:
    """Raise ValueError for a mean that shows other units."""
    for name in map(str, values["pollutant"].values):
        variable = store.variables[name]
        mean = level(variable, values.sel(pollutant=name).values)
        fault = implausible_level(variable, mean, store.mean.get(name, math.nan))
        if fault is not None:
            raise ValueError(f"{path} {fault}. Give their units in a column `units`.")


def check_observed(stations: Stations, valid_times: Hours) -> None:
    """Check that an observation exists at one of the valid times, of any shape.

    Raises:
        ValueError: there is none.
    """
    observed = stations.observed["time"].values
    if not np.isin(observed, valid_times.astype("datetime64[ns]")).any():
        raise ValueError(
            f"the stations have values from {observed.min():.13} to {observed.max():.13}, and none at the "
            f"valid times, from {valid_times.min()} to {valid_times.max()} (UTC). Give values of "
            "that time, or choose another --split."
        )


class StationSums:
    """Error sums at every station, over all initial times."""

    def __init__(
        self, stations: Stations, store: Store, forecasts: Sequence[str], horizons_h: Sequence[int]
    ) -> None:
        self._stations, self._forecasts, self._horizons_h = stations, tuple(forecasts), tuple(horizons_h)
        self._grid = {"lat": store.lat, "lon": store.lon}
        _, pollutants, places = stations.observed.shape
        per_pair = (len(horizons_h), pollutants, places)
        self._sums = {name: np.zeros((len(forecasts), *per_pair)) for name in ERRORS}
        self._counts = {name: np.zeros(per_pair) for name in ("count", "left_out")}

    def add(self, batch: ScoredBatch) -> None:
        """Add a batch; a point is scored where the station and every forecast have a value."""
        hours = batch.valid_times.astype("datetime64[ns]")
        observed = self._stations.observed.reindex(time=np.unique(hours)).sel(time=hours.ravel()).values
        truth = observed.reshape(*hours.shape, *observed.shape[1:])
        forecasts = {name: self._at_stations(values) for name, values in batch.forecasts.items()}
        due = np.isfinite(truth)
        scored = due & np.all([np.isfinite(values) for values in forecasts.values()], axis=0)
        for f, name in enumerate(self._forecasts):
            terms = error_terms(forecasts[name], truth, forecasts[CLIMATOLOGY], scored)
            for term, values in terms:
                self._sums[term][f] += values.sum(axis=0)
        self._counts["count"] += scored.sum(axis=0)
        self._counts["left_out"] += (due & ~scored).sum(axis=0)

    def _at_stations(self, values: NDArray[np.floating]) -> NDArray[np.floating]:
        """Interpolate (B, K, C, H, W) to (B, K, C, S)."""
        fields = xr.DataArray(values, dims=("init", "lead", "pollutant", "lat", "lon"), coords=self._grid)
        places = {axis: self._stations.observed[axis] for axis in ("lat", "lon")}
        brought: NDArray[np.floating] = fields.interp(places).transpose(..., "station").values
        return brought

    def all_reduce(self, ranks: RankGroup) -> None:
        """Sum over all processes."""
        all_reduce((*self._sums.values(), *self._counts.values()), ranks)

    def tables(self) -> Mapping[str, xr.Dataset]:
        """Return `stations`: the sums of `ErrorSums.by_day`, with `station` in place of day and area."""
        observed, per_pair = self._stations.observed, ("horizon", "pollutant", "station")
        sums = xr.Dataset(
            {name: (("forecast", *per_pair), values) for name, values in self._sums.items()}
            | {"weight": (per_pair, self._counts["count"])}
            | {name: (per_pair, values.astype(np.int64)) for name, values in self._counts.items()},
            coords={
                "forecast": list(self._forecasts),
                "station": observed["station"].values.astype(str),
                "lat": ("station", observed["lat"].values, {"units": "degrees_north"}),
                "lon": ("station", observed["lon"].values, {"units": "degrees_east"}),
                "pollutant": observed["pollutant"].values.astype(str),
                "horizon": ("horizon", list(self._horizons_h), {"units": "hours"}),
            },
            attrs={
                "interpolation": "bilinear, between the four cells around the station",
                "stations_outside_the_grid": list(self._stations.outside),
                "stations_beside_masked_cells": list(self._stations.masked),
                "pollutants_ignored": list(self._stations.ignored),
            },
        )
        return {"stations": sums.transpose("forecast", "station", "pollutant", "horizon")}
