"""The data store: one zarr v3 group, written with xarray and read shard by shard in training.

The layout is described in `aqtopo.data.schema`; `aqtopo.data.write` writes it.
"""

import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from aqtopo.config import READ_DEADLINE_S
from aqtopo.data.schema import (
    EXPECTED_CHANNELS,
    FIELDS_DIMS,
    HOURS_PER_SHARD,
    SCHEMA_VERSION,
    STATIC_DIMS,
    Hours,
    check_axis,
    check_names,
    check_static,
    check_units,
    raise_store_error,
    raise_unreadable,
    whole_hours,
)
from aqtopo.data.shards import (
    READ_ERRORS,
    DamagedShardError,
    FieldReader,
    field_reader,
    read_with_deadline,
    shard_path,
)

Report = Callable[[str, int, int], None]
"""Progress callback: the unit counted, the number done, the total."""


@dataclass(frozen=True, eq=False)
class Store:
    """An opened store: coordinates, static fields and statistics in memory, the hourly fields on disk.

    It may be pickled and sent to another process, where the fields are opened at the first `read`.

    Attributes:
        path: where it lies.
        times: (T,) datetime64[h], UTC, increasing.
        channels: names of the hourly fields, in storage order (C of them).
        lat: (H,) degrees north, ascending or descending.
        lon: (W,) degrees east.
        static: (H, W) float32 by name: elevation [m], population [km-2], lat2d, lon2d [degrees], mask [0/1].
        mean: mean by variable over `statistics_years`, in the variable's units; NaN without a finite value.
        std: standard deviation likewise (population, not sample).
        statistics_years: the calendar years the statistics cover; empty when there are none.
        source: where the data come from.
        attributes: every attribute of the group.
        digest: SHA-256 of the metadata (shapes, coordinates, attributes, statistics) and the static fields;
            equal on two processes exactly when they see the same store, up to the hourly values.
        copy: folder from which hours are read, on this node (`aqtopo.training.staging`); None for `path`.
        deadline_s: how long the file system may take to answer [s].
    """

    path: str
    times: Hours = field(repr=False)
    channels: tuple[str, ...]
    lat: NDArray[np.float64] = field(repr=False)
    lon: NDArray[np.float64] = field(repr=False)
    static: Mapping[str, NDArray[np.float32]] = field(repr=False)
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
    def _fields(self) -> FieldReader:
        return field_reader(self.copy or self.path)

    @property
    def simulated(self) -> bool:
        """True if the store's attribute `simulated` is `yes` or `true`."""
        return str(self.attributes.get("simulated", "no")).lower() in ("yes", "true")

    @property
    def years(self) -> tuple[int, ...]:
        """The calendar years of which at least one hour is stored."""
        return tuple(int(year) + 1970 for year in np.unique(self.times.astype("datetime64[Y]").astype(int)))

    def holds(self, times: Hours) -> NDArray[np.bool_]:
        """Return True for each of `times` that is stored, in their shape."""
        wanted = np.asarray(times).astype("datetime64[h]")
        # A search in the axis, which is sorted: np.isin would sort all its hours again for each micro-batch.
        stored: NDArray[np.bool_] = self.times[self._nearest(wanted)] == wanted
        return stored

    def _nearest(self, wanted: Hours) -> NDArray[np.intp]:
        """Indices where `wanted` can be, if anywhere."""
        return np.searchsorted(self.times, wanted).clip(max=self.times.size - 1)

    def locate(self, times: Hours) -> NDArray[np.int64]:
        """Indices on the time axis of `times`, in the shape of `times`.

        Raises:
            ValueError: one of them is not in the store.
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
        """The fields of one hour, (C, H, W) float32, NaN where there is no value.

        Raises:
            UnreadableDataError: the shard of that hour is damaged, unreadable or gone.
            TimeoutError: the file system did not answer for `deadline_s`.
        """
        values: NDArray[np.float32] = self.read_span(time_index, time_index + 1)[0]
        return values

    def read_span(self, first: int, last: int) -> NDArray[np.float32]:
        """The fields of the hours [first, last) of one shard, (n, C, H, W) float32.

        Raises:
            UnreadableDataError: the shard is damaged, unreadable or gone.
            TimeoutError: the file system did not answer for `deadline_s`.
        """
        shard = shard_path(self.path, first).relative_to(self.path)
        return read_with_deadline(
            self.path,
            f"the shard {shard} of {self.times[first]}",
            lambda: self.read_unwatched(first, last),
            self.deadline_s,
        )

    def read_unwatched(self, first: int, last: int) -> NDArray[np.float32]:
        """As `read_span` without a deadline, for who has one around many hours: starting a thread takes time.

        Raises:
            UnreadableDataError: the shard is damaged, unreadable or gone.
        """
        assert 0 <= first < last <= self.times.size
        assert first // HOURS_PER_SHARD == (last - 1) // HOURS_PER_SHARD
        try:
            return self._fields.read(first, last)
        except DamagedShardError as error:
            self.lose(first, error, self.copy)

    def lose(self, time_index: int, error: DamagedShardError, copy: str | None = None) -> NoReturn:
        """Say which hour cannot be read, and why; `copy` is where it was read, if not in the store itself.

        Raises:
            UnreadableDataError: always.
        """
        shard = shard_path(self.path, time_index).relative_to(self.path)
        where, remedy = "", "Copy the shard or the store again from its source, or write it anew."
        if copy:
            where, remedy = f" of its copy {copy}", "Start the run again: each start makes a new copy."
        time = self.times[time_index]
        raise_unreadable(self.path, f"lost the fields of {time}: the shard {shard}{where} {error}", remedy)


def open_store(path: str | Path, deadline_s: float = READ_DEADLINE_S) -> Store:
    """Open a store and check everything that can be checked without reading the hourly fields.

    Raises:
        ValueError: there is no store, it cannot be read, or it does not fit `aqtopo.data.schema`.
        TimeoutError: the file system did not answer for `deadline_s`.
    """
    dataset = read_with_deadline(path, "its metadata", lambda: _open_dataset(Path(path)), deadline_s)
    _check_layout(path, dataset)
    static = {
        str(name): dataset["static"].values[i] for i, name in enumerate(dataset["static_channel"].values)
    }
    check_static(path, static)
    attributes = dict(dataset.attrs)
    return Store(
        path=str(path),
        times=whole_hours(path, dataset["time"].values),
        channels=tuple(str(name) for name in dataset["channel"].values),
        lat=dataset["lat"].values.astype(np.float64),
        lon=dataset["lon"].values.astype(np.float64),
        static=static,
        mean=_numbers(attributes.get("channel_mean", {})),
        std=_numbers(attributes.get("channel_std", {})),
        statistics_years=tuple(attributes.get("statistics_years", ())),
        source=str(attributes["source"]),
        attributes=attributes,
        digest=_digest(dataset),
        deadline_s=deadline_s,
    )


def _open_dataset(path: Path) -> xr.Dataset:
    """The store's metadata, coordinates and static fields; `fields` stays on disk."""
    if not path.exists():
        raise ValueError(
            f"There is no data store at {path}. Correct `data.store`, or make one, "
            f"for example with `aqtopo synth {path} --years 2016 2017 2018 --grid 32x64`."
        )
    try:
        dataset = xr.open_zarr(path, zarr_format=3, consolidated=False, chunks=None)
        return dataset.load() if "fields" not in dataset else _load_all_but_fields(dataset)
    except READ_ERRORS as error:
        raise_store_error(
            path,
            f"cannot be read as a zarr v3 group ({type(error).__name__}: {error})",
            "Check that it is a complete aqtopo store and that you may read it, or make it anew.",
        )


def _load_all_but_fields(dataset: xr.Dataset) -> xr.Dataset:
    return dataset.drop_vars("fields").load().assign(fields=dataset["fields"])


def _check_layout(path: str | Path, dataset: xr.Dataset) -> None:
    version = dataset.attrs.get("schema_version")
    if version != SCHEMA_VERSION:
        raise_store_error(
            path,
            f"has the schema version {version!r}, and this aqtopo reads version {SCHEMA_VERSION}",
            "Make it anew with this version, or use the aqtopo that wrote it.",
        )
    for array, dims in (("fields", FIELDS_DIMS), ("static", STATIC_DIMS)):
        if array not in dataset or dataset[array].dims != dims or dataset[array].dtype != np.float32:
            raise_store_error(
                path, f"lacks the float32 array `{array} {dims}`", "Make it anew with `write_store`."
            )
        absent = [dim for dim in dims if dim not in dataset.coords]
        if absent:
            raise_store_error(path, f"lacks the coordinate `{absent[0]}`", "Make it anew with `write_store`.")
        channel = dims[0] if array == "static" else dims[1]
        check_names(path, array, [str(name) for name in dataset[channel].values], EXPECTED_CHANNELS[array])
        check_units(path, dataset[array].attrs.get("channel_units", {}))
    for axis in ("lat", "lon"):
        check_axis(path, axis, dataset[axis].values)
    if not isinstance(dataset.attrs.get("source"), str):
        raise_store_error(
            path, "has no attribute `source`", "Set it to one string that says where the data come from."
        )


def _numbers(values: Mapping[str, float | None]) -> dict[str, float]:
    """Statistics as stored, where JSON's null stands for a channel without a finite value."""
    return {name: math.nan if value is None else float(value) for name, value in values.items()}


def _digest(dataset: xr.Dataset) -> str:
    description = {
        "attributes": dataset.attrs,
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
    """Ranges [first, last) of time indices that cover calendar years; no range crosses a shard."""
    for year in sorted(set(years)):
        start, end = np.searchsorted(
            store.times, np.array([f"{year}-01-01", f"{year + 1}-01-01"], "datetime64[h]")
        )
        cuts = range(int(start) // HOURS_PER_SHARD * HOURS_PER_SHARD, int(end), HOURS_PER_SHARD)
        yield from ((max(cut, int(start)), min(cut + HOURS_PER_SHARD, int(end))) for cut in cuts)
