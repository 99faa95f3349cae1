"""The data store: one zarr v3 group, written with xarray and read in training with zarr directly.

The layout is described in `aqtopo.data.schema`. Three choices of storage:

* Zstandard level 3 with its content checksum: a flipped byte becomes an error instead of a plausible number.
  Empty (all-NaN) hours are written too, so that a chunk that is not there can only be a lost one.
* No consolidated metadata: the zarr v3 specification does not define it yet, and a store has seven arrays.
* xarray with one array a variable takes 78 ms to read a training sample, one stacked array through zarr
  3.6 ms (13 variables, 128 x 256, warm cache); hence `fields` is stacked and `read` asks zarr for one chunk.
"""

import functools
import hashlib
import json
import math
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

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
    coordinate_attributes,
    describe_channels,
    refuse,
    whole_hours,
)

READ_ERRORS = (OSError, ValueError, RuntimeError, KeyError)
"""What zarr and its codecs raise on damaged data (a shard cut short, a wrong checksum, broken JSON)."""

_TIME_CHUNK = 2**16
"""Hours in one chunk of the time axis: 7 years, so that opening a store reads one or two small files."""


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

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_fields"}

    @functools.cached_property
    def _fields(self) -> zarr.Array[Any]:
        array = zarr.open_group(self.path, mode="r")["fields"]
        assert isinstance(array, zarr.Array)
        return array

    @property
    def simulated(self) -> bool:
        """Whether the data says of itself that it is simulated: `yes` or `true` in its attributes."""
        return str(self.attributes.get("simulated", "no")).lower() in ("yes", "true")

    @property
    def years(self) -> tuple[int, ...]:
        """The calendar years of which at least one hour is stored."""
        return tuple(int(year) + 1970 for year in np.unique(self.times.astype("datetime64[Y]").astype(int)))

    def locate(self, times: Hours) -> NDArray[np.int64]:
        """Indices on the time axis of `times`, in the shape of `times`.

        Raises:
            ValueError: one of them is not in the store.
        """
        wanted = np.asarray(times).astype("datetime64[h]")
        indices = np.searchsorted(self.times, wanted).clip(max=self.times.size - 1)
        absent = self.times[indices] != wanted
        if np.any(absent):
            first = wanted[absent].ravel()[0]
            refuse(
                self.path,
                f"has no fields for {first}",
                "Choose another time; `aqtopo data info` lists the gaps.",
            )
        return indices.astype(np.int64)

    def read(self, time_index: int) -> NDArray[np.float32]:
        """The fields of one hour, (C, H, W) float32, NaN where there is no value.

        Raises:
            ValueError: the shard of that hour is damaged, unreadable or gone.
        """
        values: NDArray[np.float32] = self.read_span(time_index, time_index + 1)[0]
        return values

    def read_span(self, first: int, last: int) -> NDArray[np.float32]:
        """The fields of the hours [first, last) of one shard, (n, C, H, W) float32.

        Raises:
            ValueError: the shard is damaged, unreadable or gone.
        """
        assert 0 <= first < last <= self.times.size
        assert first // HOURS_PER_SHARD == (last - 1) // HOURS_PER_SHARD
        try:
            values = np.asarray(self._fields[first:last], dtype=np.float32)
        except READ_ERRORS as error:
            self._refuse_shard(first, f"cannot be read ({type(error).__name__}: {error})")
        # zarr gives the fill value for a file that is not there. Empty hours are stored, so it is a lost one.
        if np.isnan(values.flat[0]) and not self._shard(first).exists():
            self._refuse_shard(first, "is gone")
        return values

    def _shard(self, time_index: int) -> Path:
        return Path(self.path, "fields", "c", str(time_index // HOURS_PER_SHARD), "0", "0", "0")

    def _refuse_shard(self, time_index: int, what: str) -> NoReturn:
        shard = self._shard(time_index).relative_to(self.path)
        refuse(
            self.path,
            f"lost the fields of {self.times[time_index]}: the shard {shard} {what}",
            "Copy the shard or the store again from its source, or write it anew.",
        )


def write_store(blocks: xr.Dataset | Iterable[xr.Dataset], path: str | Path) -> None:
    """Write a new store from one dataset, or from several that follow each other in time.

    Each block has `fields (time, channel, lat, lon)`; the first also `static (static_channel, lat, lon)` and,
    among its attributes, `source`. All but the last hold a multiple of 24 h: no shard is written twice.
    The store is written aside, as `<path>.partial`, and takes its name when it is complete.

    Raises:
        ValueError: `path` exists already or cannot be written, or a block does not fit `aqtopo.data.schema`.
    """
    final = Path(path)
    partial = final.with_name(final.name + ".partial")
    if final.exists():
        raise ValueError(f"{final} exists already and is not overwritten. Remove it or choose another name.")
    if partial.exists():
        raise ValueError(
            f"{partial} is there: another process is writing {final}, or one was killed while it did. "
            "Remove it when nobody is writing."
        )
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
    except OSError as error:
        raise ValueError(
            f"{final} cannot be written ({error}). Choose a place where you may write."
        ) from error
    try:
        _write_blocks([blocks] if isinstance(blocks, xr.Dataset) else blocks, partial, final)
        partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_blocks(blocks: Iterable[xr.Dataset], partial: Path, name: Path) -> None:
    channels: tuple[str, ...] = ()
    attributes: dict[str, Any] = {}
    last_time: Hours | None = None
    hours = 0
    for block in blocks:
        if hours % HOURS_PER_SHARD:
            raise ValueError(
                f"A block of {name} ends after {hours} h and another follows. All blocks but the last must "
                f"hold a multiple of {HOURS_PER_SHARD} h."
            )
        fields = _checked_fields(block, name)
        joined = fields["time"].values if last_time is None else np.append(last_time, fields["time"].values)
        whole_hours(name, joined)
        if last_time is None:
            channels = tuple(fields["channel"].values.tolist())
            attributes = _create(block, fields, partial, name)
        else:
            if tuple(fields["channel"].values.tolist()) != channels:
                raise ValueError(f"A block of {name} has its channels in another order than the first block.")
            # Appending replaces the group's attributes by those of the block.
            more = (
                fields.drop_vars(["channel", "lat", "lon"]).to_dataset(name="fields").assign_attrs(attributes)
            )
            more.to_zarr(
                partial, zarr_format=3, consolidated=False, append_dim="time", write_empty_chunks=True
            )
        last_time, hours = fields["time"].values[-1:], hours + fields.sizes["time"]
    if last_time is None:
        raise ValueError(f"There is nothing to write to {name}: no block was given.")


def _checked_fields(block: xr.Dataset, name: Path) -> xr.DataArray:
    if "fields" not in block or block["fields"].dims != FIELDS_DIMS:
        refuse(name, f"was given a block without `fields {FIELDS_DIMS}`", "Give the dataset that array.")
    fields = block["fields"]
    for coordinate in FIELDS_DIMS:
        if coordinate not in fields.coords:
            refuse(name, f"was given a block without the coordinate `{coordinate}`", "Add it to the dataset.")
    check_names(name, "fields", fields["channel"].values.tolist(), EXPECTED_CHANNELS["fields"])
    check_units(name, fields.attrs.get("channel_units", {}))
    plain = fields.astype(np.float32).assign_attrs(describe_channels(fields["channel"].values.tolist()))
    return plain.reset_coords(drop=True).assign_coords(time=plain["time"].astype("datetime64[ns]"))


def _create(block: xr.Dataset, fields: xr.DataArray, partial: Path, name: Path) -> dict[str, Any]:
    """Write the first block: static fields, coordinates, attributes; gives the attributes of the group."""
    if not isinstance(block.attrs.get("source"), str):
        refuse(name, "was given no attribute `source`", "Say in one string where the data come from.")
    if "static" not in block or block["static"].dims != STATIC_DIMS:
        refuse(
            name, f"was given a first block without `static {STATIC_DIMS}`", "Give the dataset that array."
        )
    static = block["static"].astype(np.float32)
    names = static["static_channel"].values.tolist()
    check_names(name, "static", names, EXPECTED_CHANNELS["static"])
    check_units(name, static.attrs.get("channel_units", {}))
    check_static(name, {channel: static.sel(static_channel=channel).values for channel in names})
    for axis in ("lat", "lon"):
        check_axis(name, axis, fields[axis].values)

    dataset = xr.Dataset(
        {"fields": fields, "static": static.reset_coords(drop=True).assign_attrs(describe_channels(names))},
        attrs={**block.attrs, "schema_version": SCHEMA_VERSION, "Conventions": "CF-1.11"},
    )
    for coordinate, attributes in coordinate_attributes().items():
        dataset[coordinate].attrs = attributes
    # zarr v3 specifies strings of variable length only; numpy's fixed-length ones would be an extension.
    dataset = dataset.assign_coords(
        channel=dataset["channel"].astype(object), static_channel=dataset["static_channel"].astype(object)
    )
    dataset.to_zarr(
        partial,
        mode="w-",
        zarr_format=3,
        consolidated=False,
        write_empty_chunks=True,
        encoding=_encoding(fields, static),
    )
    return {str(key): value for key, value in dataset.attrs.items()}


def _encoding(fields: xr.DataArray, static: xr.DataArray) -> dict[str, dict[str, Any]]:
    compressors = [ZstdCodec(level=3, checksum=True)]
    hour = fields.shape[1:]
    return {
        "fields": {"chunks": (1, *hour), "shards": (HOURS_PER_SHARD, *hour), "compressors": compressors},
        "static": {"chunks": static.shape, "compressors": compressors},
        "time": {"chunks": (_TIME_CHUNK,), "units": "hours since 1970-01-01", "dtype": "int64"},
    }


def open_store(path: str | Path) -> Store:
    """Open a store and check everything that can be checked without reading the hourly fields.

    Raises:
        ValueError: there is no store, it cannot be read, or it does not fit `aqtopo.data.schema`.
    """
    if not Path(path).exists():
        raise ValueError(
            f"There is no data store at {path}. Correct `data.store`, or make one with `aqtopo synth {path}`."
        )
    dataset = _open_dataset(Path(path))
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
    )


def _open_dataset(path: Path) -> xr.Dataset:
    """The store's metadata, coordinates and static fields; `fields` stays on disk."""
    try:
        dataset = xr.open_zarr(path, zarr_format=3, consolidated=False, chunks=None)
        return dataset.load() if "fields" not in dataset else _load_all_but_fields(dataset)
    except READ_ERRORS as error:
        refuse(
            path,
            f"cannot be read as a zarr v3 group ({type(error).__name__}: {error})",
            "Check that it is a complete aqtopo store and that you may read it, or make it anew.",
        )


def _load_all_but_fields(dataset: xr.Dataset) -> xr.Dataset:
    return dataset.drop_vars("fields").load().assign(fields=dataset["fields"])


def _check_layout(path: str | Path, dataset: xr.Dataset) -> None:
    version = dataset.attrs.get("schema_version")
    if version != SCHEMA_VERSION:
        refuse(
            path,
            f"has the schema version {version!r}, and this aqtopo reads version {SCHEMA_VERSION}",
            "Make it anew with this version, or use the aqtopo that wrote it.",
        )
    for array, dims in (("fields", FIELDS_DIMS), ("static", STATIC_DIMS)):
        if array not in dataset or dataset[array].dims != dims or dataset[array].dtype != np.float32:
            refuse(path, f"lacks the float32 array `{array} {dims}`", "Make it anew with `write_store`.")
        absent = [dim for dim in dims if dim not in dataset.coords]
        if absent:
            refuse(path, f"lacks the coordinate `{absent[0]}`", "Make it anew with `write_store`.")
        channel = dims[0] if array == "static" else dims[1]
        check_names(path, array, [str(name) for name in dataset[channel].values], EXPECTED_CHANNELS[array])
        check_units(path, dataset[array].attrs.get("channel_units", {}))
    for axis in ("lat", "lon"):
        check_axis(path, axis, dataset[axis].values)
    if not isinstance(dataset.attrs.get("source"), str):
        refuse(path, "has no attribute `source`", "Set it to one string that says where the data come from.")


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
