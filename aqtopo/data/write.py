"""Writer of a store, from one dataset or from consecutive blocks.

Storage format:

* Chunks of an hour, not compressed, each with its CRC-32C, in shards of a day: a flipped byte becomes an
  error instead of a plausible number, and `aqtopo.data.shards` reads an hour with one system call. Zstandard
  saves an eighth of the space and takes 2.5 to 3 times as long (`benchmarks/encodings.py`). Empty (all-NaN)
  hours are written too, so a missing chunk is always a lost one.
* 64 bits of BLAKE2b of each shard's file in `shard_blake2b`, which `aqtopo data check` compares.
* No consolidated metadata: the zarr v3 specification does not define it, and a store has only eight arrays.
"""

import math
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from aqtopo.data.channels import Channel
from aqtopo.data.outside import check_decoded
from aqtopo.data.schema import (
    COORDINATE_ATTRIBUTES,
    FIELDS_DIMS,
    HOURS_PER_SHARD,
    SCHEMA_VERSION,
    Hours,
    check_layout,
    check_static,
    checked_times,
    describe_channels,
)
from aqtopo.data.shards import CHECKSUMS, shard_checksum
from aqtopo.data.units import Conversion, UnitsError, conversion
from aqtopo.refusal import raise_input_error
from aqtopo.variables import VARIABLES

_TIME_CHUNK = 2**16
"""Hours in one chunk of the time axis: 7 years, so opening a store reads one or two small files."""

LAZY_HOURS = 4 * HOURS_PER_SHARD
"""Hours of a lazy dataset that are in memory at a time."""


def write_store(blocks: xr.Dataset | Iterable[xr.Dataset], path: str | Path) -> None:
    """Write a new store from one dataset, or from several datasets in order of time.

    Each block has `fields (time, channel, lat, lon)`; the first also has `static (static_channel, lat, lon)`
    and the attribute `source`. All blocks except the last have a multiple of 24 h, so no shard is written
    twice. The store is written to `<path>.partial` and renamed when it is complete.

    Values are converted from the units in `fields.attrs["channel_units"]`, if it is there.

    Raises:
        ValueError: `path` exists already or cannot be written, or a block is undecoded, has undeclared fill
            values or impossible magnitudes, or violates `aqtopo.data.schema`.
    """
    final = Path(path)
    partial = final.with_name(final.name + ".partial")
    if final.exists():
        raise ValueError(f"{final} exists already and is not overwritten. Remove it or choose another name.")
    if partial.exists():
        raise ValueError(
            f"{partial} exists: another process is writing {final}, or was killed while writing. "
            "Remove it if no process is writing."
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
    checksums: list[int] = []
    for block in _loaded(blocks, name):
        if hours % HOURS_PER_SHARD:
            raise ValueError(
                f"A block of {name} ends after {hours} h and another follows. All blocks except the last "
                f"must have a multiple of {HOURS_PER_SHARD} h."
            )
        block = _in_store_units(block, name)
        # float64 is accepted, and stored as float32.
        block = block.assign(
            {array: block[array].astype(np.float32) for array in ("fields", "static") if array in block}
        )
        check_layout(name, block, first=last_time is None)
        fields = block["fields"].reset_coords(drop=True)
        fields = fields.assign_coords(time=fields["time"].astype("datetime64[ns]"))
        fields = fields.assign_attrs(describe_channels(fields["channel"].values.tolist()))
        joined = fields["time"].values if last_time is None else np.append(last_time, fields["time"].values)
        checked_times(name, joined)
        if last_time is None:
            channels = tuple(fields["channel"].values.tolist())
            attributes = _create(block, fields, partial, name)
        else:
            if tuple(fields["channel"].values.tolist()) != channels:
                raise ValueError(
                    f"A block of {name} has its channels in another order than the first block. Reorder them."
                )
            # An append replaces the group's attributes by those of the block.
            more = (
                fields.drop_vars(["channel", "lat", "lon"]).to_dataset(name="fields").assign_attrs(attributes)
            )
            more.to_zarr(
                partial, zarr_format=3, consolidated=False, append_dim="time", write_empty_chunks=True
            )
        last_time, hours = fields["time"].values[-1:], hours + fields.sizes["time"]
        # Hash now, while the files are in the page cache.
        shards = range(len(checksums), math.ceil(hours / HOURS_PER_SHARD))
        checksums += [shard_checksum(partial, shard) for shard in shards]
    if last_time is None:
        raise ValueError(f"There is nothing to write to {name}: no block was given. Pass at least one.")
    zarr.create_array(
        partial / CHECKSUMS,
        data=np.array(checksums, dtype=np.uint64),
        dimension_names=["shard"],
        attributes={"long_name": "first 64 bits of BLAKE2b of the file of each shard of `fields`"},
    )


def _loaded(blocks: Iterable[xr.Dataset], name: Path) -> Iterator[xr.Dataset]:
    """Give decoded blocks in memory, without encodings; a lazy block in parts."""
    for block in blocks:
        check_decoded(block, f"A dataset for {name}")
        plain = block.drop_encoding()
        hours = max(block.sizes.get("time", 0), 1)
        lazy = "fields" in block and not block["fields"].variable._in_memory
        for start in range(0, hours, LAZY_HOURS if lazy else hours):
            chosen = slice(start, start + (LAZY_HOURS if lazy else hours))
            yield plain.isel({"time": chosen}, missing_dims="ignore").load()


def _in_store_units(block: xr.Dataset, name: Path) -> xr.Dataset:
    """Convert each channel from its `channel_units`, if it has any, and refuse values that are no data."""
    if "fields" not in block or block["fields"].dims != FIELDS_DIMS or "channel" not in block.coords:
        return block
    source, fields = f"A dataset for {name}", block["fields"]
    units = dict(fields.attrs.get("channel_units", {}))
    written = fields.values.astype(np.float32)
    for place, channel in enumerate(fields["channel"].values.tolist()):
        if channel not in VARIABLES:
            continue
        variable = VARIABLES[channel]
        given = fields.isel(channel=place, drop=True).rename(channel)
        given.attrs = {"units": units.pop(channel, variable.units)}
        try:
            change = conversion(given.attrs["units"], variable.units)
        except UnitsError as error:
            raise_input_error(source, f"gives the channel {channel} in units that cannot be used", str(error))
        if change.needs_density:
            raise_input_error(
                source,
                f"gives the channel {channel} in {given.attrs['units']!r}, a ratio of masses",
                f"Multiply it by the density of air to have {variable.units!r}",
            )
        written[:, place] = Channel(variable, given, change, None, source).load().values.values
    converted = fields.copy(data=written).assign_attrs(channel_units=units)
    times = block["time"].to_index() if "time" in block.coords else None
    if isinstance(times, xr.CFTimeIndex):
        block = block.assign_coords(time=times.to_datetimeindex(time_unit="ns"))
        converted = converted.assign_coords(time=block["time"])
    return block.assign(fields=converted)


def _create(block: xr.Dataset, fields: xr.DataArray, partial: Path, name: Path) -> dict[str, Any]:
    """Write the first block: static fields, coordinates, attributes; return the attributes of the group."""
    names = block["static_channel"].values.tolist()
    static = block["static"].reset_coords(drop=True).assign_attrs(describe_channels(names))
    check_static(name, dict(zip(names, static.values, strict=True)))
    for channel in set(names) & set(VARIABLES):
        given = static.sel(static_channel=channel, drop=True).rename(channel)
        given.attrs = {"units": VARIABLES[channel].units}
        Channel(VARIABLES[channel], given, Conversion(), None, f"A dataset for {name}").load()
    dataset = xr.Dataset(
        {"fields": fields, "static": static},
        attrs={**block.attrs, "schema_version": SCHEMA_VERSION, "Conventions": "CF-1.11"},
    )
    for coordinate, attributes in COORDINATE_ATTRIBUTES.items():
        dataset[coordinate].attrs = attributes
    # zarr v3 specifies only strings of variable length; numpy's fixed-length strings are an extension.
    dataset = dataset.assign_coords(
        channel=dataset["channel"].astype(object), static_channel=dataset["static_channel"].astype(object)
    )
    hour = fields.shape[1:]
    encoding: dict[str, dict[str, Any]] = {
        "fields": {
            "chunks": (1, *hour),
            "shards": (HOURS_PER_SHARD, *hour),
            "compressors": [Crc32cCodec()],
        },
        "static": {"chunks": static.shape, "compressors": [ZstdCodec(level=3, checksum=True)]},
        "time": {"chunks": (_TIME_CHUNK,), "units": "hours since 1970-01-01", "dtype": "int64"},
    }
    dataset.to_zarr(
        partial, mode="w-", zarr_format=3, consolidated=False, write_empty_chunks=True, encoding=encoding
    )
    return {str(key): value for key, value in dataset.attrs.items()}
