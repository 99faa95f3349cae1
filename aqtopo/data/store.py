"""Data store: one zarr v3 group, read shard by shard in training.

`aqtopo.data.schema` describes the layout; `aqtopo.data.write` writes it.
"""

import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray

from aqtopo.data.descriptions import attribute_mapping, channel_variables
from aqtopo.data.schema import (
    FIELDS_DIMS,
    HOURS_PER_SHARD,
    SCHEMA_VERSION,
    STATIC_DIMS,
    Hours,
    check_layout,
    check_metadata_files,
    check_small_arrays,
    check_static,
    checked_times,
    raise_store_error,
    raise_unreadable,
)
from aqtopo.data.shards import (
    DamagedShardError,
    PlainShards,
    ZarrFields,
    field_reader,
    read_with_deadline,
    shard_path,
)
from aqtopo.refusal import READ_ERRORS
from aqtopo.variables import READ_DEADLINE_S, Variables

if TYPE_CHECKING:
    from aqtopo.config import RunConfig

Report = Callable[[str, int, int], None]
"""Progress callback: name of the items, number done, total number."""


@dataclass(frozen=True)
class Statistics:
    """Mean and population standard deviation by variable, in its units; NaN without a finite value."""

    mean: Mapping[str, float]
    std: Mapping[str, float]
    years: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Store:
    """Opened store: coordinates, static fields and statistics in memory, the hourly fields on disk.

    It can be pickled; another process opens the fields at its first `read`.

    Attributes:
        path: folder of the store.
        times: (T,) datetime64[h], UTC, increasing.
        channels: names of the hourly fields, in storage order (C of them).
        lat: (H,) degrees north, ascending or descending.
        lon: (W,) degrees east.
        static: (H, W) float32 by name: elevation [m], lat2d, lon2d [degrees], mask [0/1] and others.
        variables: description of every channel but the mask.
        statistics: of all sets of years that are stored.
        mean: mean by variable over `statistics_years`, in the variable's units; NaN without a finite value.
        std: population standard deviation by variable, in its units; NaN without a finite value.
        statistics_years: the calendar years of the chosen statistics; empty if there are none.
        source: origin of the data.
        attributes: all attributes of the group.
        digest: SHA-256 of the metadata (shapes, coordinates, attributes, chosen statistics) and the static
            fields, without the hourly values.
        copy: folder on this node from which hours are read (`aqtopo.training.staging`); None for `path`.
        deadline_s: longest wait for the file system [s].
    """

    path: str
    times: Hours = field(repr=False)
    channels: tuple[str, ...]
    lat: NDArray[np.float64] = field(repr=False)
    lon: NDArray[np.float64] = field(repr=False)
    static: Mapping[str, NDArray[np.float32]] = field(repr=False)
    variables: Variables = field(repr=False)
    statistics: tuple[Statistics, ...] = field(repr=False)
    mean: Mapping[str, float] = field(repr=False)
    std: Mapping[str, float] = field(repr=False)
    statistics_years: tuple[int, ...]
    source: str
    attributes: Mapping[str, Any] = field(repr=False)
    digest: str
    copy: str | None = None
    deadline_s: float = READ_DEADLINE_S

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_fields"}

    @functools.cached_property
    def _fields(self) -> PlainShards | ZarrFields:
        return field_reader(self.copy or self.path)

    @property
    def simulated(self) -> bool:
        """Return True if the attribute `simulated` of the data is `yes` or `true`."""
        return str(self.attributes.get("simulated", "no")).lower() in ("yes", "true")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.lat.size, self.lon.size

    @property
    def years(self) -> tuple[int, ...]:
        """Calendar years with at least one stored hour."""
        return tuple(int(year) + 1970 for year in np.unique(self.times.astype("datetime64[Y]").astype(int)))

    def holds(self, times: Hours) -> NDArray[np.bool_]:
        """Return a mask of the `times` that are stored, in the shape of `times`."""
        wanted = np.asarray(times).astype("datetime64[h]")
        # The axis is sorted; np.isin would sort all its hours again for each micro-batch.
        stored: NDArray[np.bool_] = self.times[self._nearest(wanted)] == wanted
        return stored

    def _nearest(self, wanted: Hours) -> NDArray[np.intp]:
        """Return the only possible indices of `wanted`."""
        return np.searchsorted(self.times, wanted).clip(max=self.times.size - 1)

    def locate(self, times: Hours) -> NDArray[np.int64]:
        """Return the indices of `times` on the time axis, in the shape of `times`.

        Raises:
            ValueError: a time is not in the store.
        """
        wanted = np.asarray(times).astype("datetime64[h]")
        indices = self._nearest(wanted)
        absent = self.times[indices] != wanted
        if np.any(absent):
            first = wanted[absent].ravel()[0]
            raise_store_error(
                self.path,
                f"has no fields for {first}",
                "Choose another time; `aqtopo data info` lists the gaps.",
            )
        return indices.astype(np.int64)

    def read(self, time_index: int) -> NDArray[np.float32]:
        """Return the fields of one hour, (C, H, W) float32, NaN for missing values.

        Raises:
            UnreadableDataError: the shard of that hour is damaged, unreadable or missing.
            TimeoutError: the file system did not answer for `deadline_s`.
        """
        values: NDArray[np.float32] = self.read_span(time_index, time_index + 1)[0]
        return values

    def read_span(self, first: int, last: int) -> NDArray[np.float32]:
        """Return the fields of several hours of one shard (a day).

        Args:
            first: index of the first hour on the time axis.
            last: index after the last hour.

        Returns:
            (n, C, H, W) float32, NaN for missing values.

        Raises:
            UnreadableDataError: the shard is damaged, unreadable or missing.
            TimeoutError: the file system did not answer for `deadline_s`.
        """
        shard = shard_path(self.path, first).relative_to(self.path)
        return read_with_deadline(
            self.path,
            f"the shard {shard} of {self.times[first]}",
            lambda: self.read_without_deadline(first, last),
            self.deadline_s,
        )

    def read_without_deadline(self, first: int, last: int) -> NDArray[np.float32]:
        """Read as `read_span` does, without a thread and deadline of its own, for callers that have one.

        Raises:
            UnreadableDataError: the shard is damaged, unreadable or missing.
        """
        assert 0 <= first < last <= self.times.size
        assert first // HOURS_PER_SHARD == (last - 1) // HOURS_PER_SHARD
        try:
            return self._fields.read(first, last)
        except DamagedShardError as error:
            self.raise_damaged(first, error, self.copy)

    def raise_damaged(self, time_index: int, error: DamagedShardError, copy: str | None = None) -> NoReturn:
        """Raise the error for an unreadable hour; `copy` is the node-local copy that was read, if any.

        Raises:
            UnreadableDataError: always.
        """
        shard = shard_path(self.path, time_index).relative_to(self.path)
        where, remedy = "", "Copy the shard or the store again from its source, or write the store again."
        if copy:
            where, remedy = f" of its copy {copy}", "Start the run again: each start makes a new copy."
        time = self.times[time_index]
        raise_unreadable(
            self.path, f"has unreadable fields at {time}: the shard {shard}{where} {error}", remedy
        )


def open_run_store(config: "RunConfig", path: str | Path | None = None) -> Store:
    """Open the store of a run, or its copy at `path`, with the statistics of its training years."""
    return open_store(path or config.data.store, config.data.read_deadline_s, config.data.train_years)


def open_store(
    path: str | Path, deadline_s: float = READ_DEADLINE_S, years: Sequence[int] | None = None
) -> Store:
    """Open a store and check everything except the hourly fields.

    Args:
        path: folder of the store.
        deadline_s: longest wait for the file system [s]; default: 300.
        years: the statistics to choose, if they are there; else the first ones.

    Raises:
        ValueError: there is no store, it cannot be read, or it violates `aqtopo.data.schema`.
        TimeoutError: the file system did not answer for `deadline_s`.
    """
    dataset = read_with_deadline(path, "its metadata", lambda: _open_dataset(Path(path)), deadline_s)
    version = dataset.attrs.get("schema_version")
    if version != SCHEMA_VERSION:
        raise_store_error(
            path,
            f"has the schema version {version!r}, but this aqtopo reads version {SCHEMA_VERSION}",
            "Write it again with this version, or use the aqtopo version that wrote it.",
        )
    check_layout(path, dataset)
    static = {
        str(name): dataset["static"].values[i] for i, name in enumerate(dataset["static_channel"].values)
    }
    check_static(path, static)
    statistics = _statistics(path, dataset.attrs)
    wanted = [each for each in statistics if years is not None and set(each.years) == set(years)]
    chosen = next(iter([*wanted, *statistics]), Statistics({}, {}, ()))
    # A further set must change neither the digest nor the attributes of a run that uses another one.
    attributes = {key: value for key, value in dataset.attrs.items() if key != FURTHER_STATISTICS}
    if statistics and chosen is not statistics[0]:
        attributes |= statistics_attributes(chosen)
    channels = tuple(dataset["channel"].values.tolist())
    return Store(
        path=str(path),
        times=checked_times(path, dataset["time"].values),
        channels=channels,
        lat=dataset["lat"].values.astype(np.float64),
        lon=dataset["lon"].values.astype(np.float64),
        static=static,
        variables=channel_variables(
            path, (channels, dataset["fields"].attrs), ([*static], dataset["static"].attrs)
        ),
        statistics=statistics,
        mean=chosen.mean,
        std=chosen.std,
        statistics_years=chosen.years,
        source=str(attributes["source"]),
        attributes=attributes,
        digest=_digest(dataset, attributes),
        deadline_s=deadline_s,
    )


def _open_dataset(path: Path) -> xr.Dataset:
    """Return the store's metadata, coordinates and static fields; `fields` stays on disk."""
    if not path.exists():
        where = "" if path.is_absolute() else f", relative to {Path.cwd()}"
        raise ValueError(
            f"There is no data store at {path}{where}. Correct the path (`data.store`), or make the store: "
            "docs/data.md describes `aqtopo prepare` for real data and `aqtopo synth` for simulated ones."
        )
    if not (path / "zarr.json").is_file():
        _refuse_other(path)
    check_metadata_files(path)
    try:
        group = zarr.open_group(path, mode="r", zarr_format=3)
        small = ("static", *FIELDS_DIMS, *STATIC_DIMS)
        check_small_arrays(path, {name: array for name, array in group.arrays() if name in small})
        dataset = xr.open_zarr(path, zarr_format=3, consolidated=False, chunks=None)
        loaded: xr.Dataset = dataset.drop_vars("fields", errors="ignore").load()
        return loaded.assign(fields=dataset["fields"]) if "fields" in dataset else loaded
    except READ_ERRORS as error:
        raise_store_error(
            path,
            f"cannot be read as a zarr v3 group ({type(error).__name__}: {error})",
            "Check that it is a complete aqtopo store and that you may read it, or write it again.",
        )


def _refuse_other(path: Path) -> NoReturn:
    """Raise the error that says what a path is instead of a store."""
    from aqtopo.data.file_formats import engine_of  # takes time, and stores do not need it

    try:
        found = {"netcdf4": "a NetCDF file", "zarr": "a zarr group of version 2"}[engine_of(path)]
    except ValueError as error:
        raise ValueError(f"There is no data store at {path}: {error}") from error
    remedy = "Make a store from it with `aqtopo.data.write_store`, see docs/data.md."
    raise_store_error(path, f"is {found}, not a store", remedy)


FURTHER_STATISTICS = "further_statistics"
"""Attribute with the statistics of all sets of years but the first."""


def statistics_attributes(statistics: Statistics) -> dict[str, Any]:
    """Return statistics as attributes, with JSON's null for the NaN of a channel without a finite value."""

    def nulls(values: Mapping[str, float]) -> dict[str, float | None]:
        return {name: None if math.isnan(value) else value for name, value in values.items()}

    return {
        "channel_mean": nulls(statistics.mean),
        "channel_std": nulls(statistics.std),
        "statistics_years": list(statistics.years),
    }


def _statistics(path: str | Path, attributes: Mapping[str, Any]) -> tuple[Statistics, ...]:
    """Return all stored statistics, the first ones first."""
    further = attributes.get(FURTHER_STATISTICS, [])
    if not isinstance(further, list) or not all(isinstance(each, Mapping) for each in further):
        raise_store_error(path, f"has {FURTHER_STATISTICS} of a wrong type", _STATISTICS_REMEDY)
    sets = [attributes, *further] if attributes.get("statistics_years") else further
    return tuple(_read_statistics(path, each) for each in sets)


def _read_statistics(path: str | Path, attributes: Mapping[str, Any]) -> Statistics:
    years = attributes.get("statistics_years")
    if not isinstance(years, list) or not all(type(year) is int for year in years):
        raise_store_error(path, f"has statistics_years = {years!r}", _STATISTICS_REMEDY)

    def numbers(key: str) -> dict[str, float]:
        values = attribute_mapping(f"The data store {path}", attributes, key)
        for name, value in values.items():
            number = type(value) in (float, int) and abs(value) < 1e300 and (key == _MEAN or value >= 0)
            if value is not None and not number:
                raise_store_error(path, f"has {key} of {name} = {value!r}", _STATISTICS_REMEDY)
        return {name: math.nan if value is None else float(value) for name, value in values.items()}

    mean, std = numbers(_MEAN), numbers("channel_std")
    for name in mean | std:
        if math.isnan(mean.get(name, math.nan)) != math.isnan(std.get(name, math.nan)):
            fact = f"has a channel_mean of {name} without a channel_std, or the reverse"
            raise_store_error(path, fact, _STATISTICS_REMEDY)
    return Statistics(mean, std, tuple(years))


_MEAN = "channel_mean"
_STATISTICS_REMEDY = "Correct the attribute, or remove it and run `aqtopo data statistics`."


def _digest(dataset: xr.Dataset, attributes: Mapping[str, Any]) -> str:
    description = {
        "attributes": attributes,
        "fields": [list(dataset["fields"].shape), dataset["fields"].attrs],
        "channels": [str(name) for name in dataset["channel"].values],
        "static_channels": [str(name) for name in dataset["static_channel"].values],
    }
    digest = hashlib.sha256(json.dumps(description, sort_keys=True, default=str).encode())
    for name in ("time", "lat", "lon", "static"):
        digest.update(np.ascontiguousarray(dataset[name].values).tobytes())
    return digest.hexdigest()


def no_progress(what: str, done: int, total: int) -> None:
    """No-op `Report`."""


def shard_ranges(store: Store, years: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield the ranges [first, last) of time indices of calendar years, one for each shard."""
    for year in sorted(set(years)):
        start, end = np.searchsorted(
            store.times, np.array([f"{year}-01-01", f"{year + 1}-01-01"], "datetime64[h]")
        )
        cuts = range(int(start) // HOURS_PER_SHARD * HOURS_PER_SHARD, int(end), HOURS_PER_SHARD)
        yield from ((max(cut, int(start)), min(cut + HOURS_PER_SHARD, int(end))) for cut in cuts)
