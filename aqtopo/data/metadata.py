"""Metadata of a store for checks without its data, and the check that a run fits them.

`read_metadata` needs neither xarray nor pandas, so that `aqtopo config validate` starts quickly.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from aqtopo.data.descriptions import Described as Channels
from aqtopo.data.descriptions import channel_variables
from aqtopo.data.schema import (
    SCHEMA_VERSION,
    Hours,
    check_metadata_files,
    check_small_arrays,
    checked_times,
    raise_store_error,
)
from aqtopo.data.shards import read_with_deadline
from aqtopo.refusal import READ_ERRORS
from aqtopo.variables import NEEDED_CHANNELS, READ_DEADLINE_S, Variables

if TYPE_CHECKING:
    from aqtopo.config import RunConfig


class Described(Protocol):
    """Metadata of a store; a `Store` has them too."""

    @property
    def path(self) -> str:
        """Folder."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns."""

    @property
    def variables(self) -> Variables:
        """Description of every channel."""


class Metadata(NamedTuple):
    """Metadata of a store that is not opened."""

    path: str
    grid: tuple[int, int]
    variables: Variables
    times: Hours

    @property
    def hourly(self) -> int:
        """Number of hourly fields."""
        return sum(variable.kind == "dynamic" for variable in self.variables.values())


def read_metadata(path: Path) -> Metadata:
    """Read the metadata of a store.

    Raises:
        ValueError: as `aqtopo.data.open_store`.
    """
    found = read_with_deadline(path, "its metadata", lambda: _read_quickly(path), READ_DEADLINE_S)
    if found is not None:
        return found
    from aqtopo.data.store import open_store  # names the fault

    store = open_store(path)
    return Metadata(store.path, store.grid, store.variables, store.times)


_CALENDARS = ("standard", "gregorian", "proleptic_gregorian")
_COORDINATES = ("time", "channel", "static_channel")
_ARRAYS = ("fields", "static", "time", "channel", "static_channel")


def _read_quickly(path: Path) -> Metadata | None:
    """Return the metadata of a store that `write_store` wrote; None if its form differs, or is damaged."""
    try:
        found = _read_arrays(path)
    except READ_ERRORS:
        return None
    if found is None:
        return None
    (rows, columns), times, fields, static = found
    for array, (names, _) in (("fields", fields), ("static", static)):
        if not set(NEEDED_CHANNELS[array]) <= set(names):
            return None
    return Metadata(
        str(path), (rows, columns), channel_variables(path, fields, static), checked_times(path, times)
    )


def _read_arrays(path: Path) -> tuple[tuple[int, int], Hours, Channels, Channels] | None:
    """Return grid, times, and the channels and attributes of both arrays; None if their form differs."""
    import zarr

    check_metadata_files(path)
    group = zarr.open_group(path, mode="r", zarr_format=3)
    arrays: dict[str, Any] = {name: group[name] for name in _ARRAYS}
    hours = "hours since 1970-01-01"
    usual = group.attrs.get("schema_version") == SCHEMA_VERSION and arrays["time"].attrs.get("units") == hours
    usual = usual and arrays["time"].attrs.get("calendar", "standard") in _CALENDARS
    if not usual or arrays["fields"].ndim != 4:
        return None
    check_small_arrays(path, {name: arrays[name] for name in _COORDINATES})
    fields, static = (
        ([str(each) for each in arrays[channels][:]], dict(arrays[array].attrs))
        for array, channels in (("fields", "channel"), ("static", "static_channel"))
    )
    times = np.asarray(arrays["time"][:], dtype="datetime64[h]")
    return arrays["fields"].shape[2:], times, fields, static


def check_fit(store: Described, config: "RunConfig") -> None:
    """Check that a store has the grid and the channels of a run.

    Raises:
        ValueError: one of them differs; the message names the store, the difference and the remedy.
    """
    rows, columns = config.data.grid
    if store.grid != (rows, columns):
        found, others = store.grid
        raise_store_error(
            store.path,
            f"has {found} x {others} cells, but `data.grid` is {rows} x {columns}",
            f"Set `data.grid` to [{found}, {others}], or choose another store.",
        )
    data = config.data
    known = ", ".join(store.variables)
    for name in data.channels:
        if name not in store.variables:
            raise_store_error(
                store.path,
                f"lacks the channel {name}; it has {known}",
                f"Leave {name} out of the run's variables.",
            )
    if data.normalization == "topoflow":
        check_published(store, data.channels)
    pollutants = [name for name, variable in store.variables.items() if variable.pollutant]
    for name in data.targets:
        if name not in pollutants:
            raise_store_error(
                store.path,
                f"does not describe {name} as a pollutant, and it is in `data.targets`",
                f"Choose from {', '.join(pollutants)}, or write the store again with `pollutant=True`.",
            )
    for name in data.weather_at_horizons:
        if store.variables[name].kind == "static" or name in pollutants:
            raise_store_error(
                store.path,
                f"describes {name} as static or as a pollutant, and it is in `data.weather_at_horizons`",
                "Name only hourly variables there that are no pollutants.",
            )
    for name, _ in data.history:
        if store.variables[name].kind == "static":
            raise_store_error(
                store.path,
                f"has {name} as a static field, and `data.history_hours` asks for earlier ones",
                "Name the variables in `data.history_variables`, without static ones.",
            )


def check_published(store: Described, names: Iterable[str]) -> None:
    """Check that variables have TopoFlow's published mean and standard deviation.

    Raises:
        ValueError: one has none.
    """
    for name in names:
        if None in (store.variables[name].topoflow_mean, store.variables[name].topoflow_std):
            raise_store_error(
                store.path,
                f"has no published mean and standard deviation of {name}, which `data.normalization` = "
                '"topoflow" needs',
                'Set `data.normalization` to "dataset".',
            )
