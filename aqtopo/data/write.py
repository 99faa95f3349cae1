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
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from aqtopo.data.channels import Channel, LoadedChannel, drop_single
from aqtopo.data.coordinates import AXES, rows_of
from aqtopo.data.descriptions import attribute_mapping, channel_attributes, read_descriptions
from aqtopo.data.missing import ZARR_ARRAYS, check_chunks
from aqtopo.data.names import plain_name
from aqtopo.data.outside import normalise
from aqtopo.data.schema import (
    ARRAYS,
    COORDINATE_ATTRIBUTES,
    FIELDS_DIMS,
    HOURS_PER_SHARD,
    SCHEMA_VERSION,
    STATIC_DIMS,
    Hours,
    check_layout,
    check_static,
    checked_times,
)
from aqtopo.data.shards import CHECKSUMS, shard_checksum
from aqtopo.data.units import UnitsError, conversion
from aqtopo.refusal import file_named, raise_input_error
from aqtopo.safe_files import temporary_path
from aqtopo.variables import Variable, VariableKind, Variables

_TIME_CHUNK = 2**16
"""Hours in one chunk of the time axis: 7 years, so opening a store reads one or two small files."""

LAZY_HOURS = 4 * HOURS_PER_SHARD
"""Hours of a lazy dataset that are in memory at a time."""


def write_store(
    blocks: xr.Dataset | Iterable[xr.Dataset], path: str | Path, variables: Iterable[Variable] = ()
) -> dict[str, int]:
    """Write a new store from one dataset, or from several datasets in order of time.

    Each block has `fields (time, channel, lat, lon)`; the first also has `static (static_channel, lat, lon)`
    and the attribute `source`. Axes are recognised as `aqtopo.data.outside` does, and dimensions may be in
    any order. A latitude or longitude without a jump keeps its direction. All blocks except the last have a
    multiple of 24 h, so no shard is written twice. The store is written to `<path>.<8 hex digits>.tmp` and
    renamed when it is complete; only a killed process leaves that folder behind.

    Values are converted from the units in `fields.attrs["channel_units"]`, if it is there.

    Args:
        blocks: the data.
        path: folder of the store.
        variables: descriptions of channels that are not in `aqtopo.variables`, or that replace those there.
            The attributes of `fields` and `static` in the first block may describe channels too, see
            `aqtopo.data.descriptions`.

    Returns:
        The number of values outside the valid range that were kept, such as small negative concentrations, by
        channel; without the channels that have none. `aqtopo data check` lists them too.

    Raises:
        ValueError: `path` exists already or cannot be written, a channel is not described, or a block is
            undecoded, has undeclared fill values or impossible magnitudes, or violates `aqtopo.data.schema`.
    """
    final, partial = Path(path), temporary_path(Path(path))
    _check_new(final)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
    except OSError as error:
        raise ValueError(
            f"{final} cannot be written ({error}). Choose a place where you may write."
        ) from error
    try:
        with file_named(partial):
            given = {variable.name: variable for variable in variables}
            listed = [blocks] if isinstance(blocks, xr.Dataset) else blocks
            outside = _write_blocks(listed, partial, final, given)
        _check_new(final)  # another process may have written it
        partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return dict(outside)


def _check_new(path: Path) -> None:
    if path.exists():
        raise ValueError(f"{path} exists already and is not overwritten. Remove it or choose another name.")


def _write_blocks(blocks: Iterable[xr.Dataset], partial: Path, name: Path, given: Variables) -> Counter[str]:
    described: dict[str, Variable] = {}
    outside: Counter[str] = Counter()
    channels: tuple[str, ...] = ()
    attributes: dict[str, Any] = {}
    last_time: Hours | None = None
    hours = 0
    checksums: list[int] = []
    source = f"A dataset for {name}"
    for block in _loaded(blocks, source):
        if hours % HOURS_PER_SHARD:
            raise ValueError(
                f"A block of {name} ends after {hours} h and another follows. All blocks except the last "
                f"must have a multiple of {HOURS_PER_SHARD} h."
            )
        if last_time is None:
            described, grid = _descriptions(block, source, given), block
        else:
            block = block.drop_vars("static", errors="ignore")
        block = _in_store_units(block, source, described, outside)
        check_layout(name, block, first=last_time is None)
        _check_same_grid(block, grid, name)
        fields = block["fields"].reset_coords(drop=True)
        fields = fields.assign_coords(time=fields["time"].astype("datetime64[ns]"))
        names = tuple(fields["channel"].values.tolist())
        if last_time is not None and names != channels:
            raise ValueError(
                f"A block of {name} has its channels in another order than the first block. Reorder them."
            )
        fields.attrs |= channel_attributes(described[each] for each in names)
        joined = fields["time"].values if last_time is None else np.append(last_time, fields["time"].values)
        checked_times(name, joined)
        if last_time is None:
            channels = names
            attributes = _create(block, fields, partial, name, described)
        else:
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
    return outside


def _check_same_grid(block: xr.Dataset, first: xr.Dataset, name: Path) -> None:
    """Refuse a block on another grid than the first one: only hourly fields are appended."""
    for axis, period in (("lat", None), ("lon", 360.0)):
        rows = rows_of(block[axis].values, first[axis].values, period)
        if rows is None or not np.array_equal(rows, np.arange(block.sizes[axis])):
            raise ValueError(
                f"A block of {name} has other {AXES[axis]}s than the first block, or in another order. Bring "
                "all blocks to one grid."
            )


def _loaded(blocks: Iterable[xr.Dataset], source: str) -> Iterator[xr.Dataset]:
    """Give decoded blocks in the layout of a store, in memory, without encodings; a lazy block in parts."""
    for given in blocks:
        block = _in_layout(given, source)
        hours = max(block.sizes.get("time", 0), 1)
        lazy = "fields" in block and not block["fields"].variable._in_memory
        for start in range(0, hours, LAZY_HOURS if lazy else hours):
            chosen = slice(start, start + (LAZY_HOURS if lazy else hours))
            yield block.isel({"time": chosen}, missing_dims="ignore").load()


def _in_layout(given: xr.Dataset, source: str) -> xr.Dataset:
    """Return a block with the axes and dimensions of a store; axes are recognised as the reader does."""
    block = normalise(given, source, keep_direction=True)
    curvilinear = {d for axis in ("lat", "lon") if axis in block.coords for d in block[axis].dims}
    for array, dims in ARRAYS.items():
        if array not in block:
            continue
        for folder in block[array].attrs.pop(ZARR_ARRAYS, []):
            check_chunks(Path(folder), zeros_are_usual=False)
        found = drop_single(block[array], {*dims, *curvilinear}, source)
        for dim in dims:
            if dim not in found.dims and dim in found.coords and not found[dim].ndim:
                found = found.expand_dims(dim)
        if set(found.dims) != set(dims):
            raise_input_error(
                source,
                f"has `{array}` on the dimensions {', '.join(map(str, found.dims))}, where a store has "
                f"{', '.join(dims)}",
                "Name them so, and give latitudes and longitudes of one dimension each",
            )
        block[array] = found.transpose(*dims)
    return block


def _descriptions(block: xr.Dataset, source: str, given: Variables) -> dict[str, Variable]:
    """Return the description of each channel of the first block.

    Raises:
        ValueError: a channel is not described, or a description belongs to none.
    """
    found: dict[str, Variable] = {}
    arrays: tuple[tuple[str, str, VariableKind], ...] = (
        ("fields", "channel", "dynamic"),
        ("static", "static_channel", "static"),
    )
    for array, axis, kind in arrays:
        if array in block and axis in block.coords:
            names = block[axis].values.tolist()
            found |= read_descriptions(source, names, kind, block[array].attrs, given)
    unused = [each for each in given if each not in found]
    if unused:
        raise_input_error(
            source,
            f"has no channel {', '.join(unused)}, and it is described",
            f"Name one of {', '.join(found)}",
        )
    return found


def _in_store_units(
    block: xr.Dataset, source: str, described: Variables, outside: Counter[str]
) -> xr.Dataset:
    """Convert each channel from its `channel_units`, if it has any, and refuse values that are no data.

    Values of fields outside the valid range that are kept are added to `outside`.
    """
    for array, (axis, *_) in {"fields": FIELDS_DIMS[1:], "static": STATIC_DIMS}.items():
        if array not in block:
            continue
        units = dict(attribute_mapping(source, block[array].attrs, "channel_units"))
        written = block[array].astype(np.float32)
        for place, channel in enumerate(written[axis].values.tolist()):
            if channel not in described:
                continue  # the mask, or of a later block, whose channels are compared with the first one's
            given = block[array].isel({axis: place}, drop=True)
            loaded = _converted(given, units.pop(channel, None), described[channel], source)
            written[{axis: place}] = loaded.values.values
            if loaded.outside and array == "fields":
                outside[channel] += loaded.outside
        channels = {plain_name(channel): channel for channel in described}
        for name in units:  # the rest, of channels that the block lacks
            if (channel := channels.get(plain_name(name), name)) != name:
                raise_input_error(
                    source, f"has channel_units of {name}, and the channel {channel}", f"Name it {channel}"
                )
        block = block.assign({array: written.assign_attrs(channel_units=units)})
    return block


def _converted(given: xr.DataArray, units: str | None, variable: Variable, source: str) -> LoadedChannel:
    """Return the values of a channel, converted from its units, if they are given, and checked."""
    units = variable.units if units is None else units
    try:
        change = conversion(units, variable.units)
    except UnitsError as error:
        raise_input_error(
            source, f"gives the channel {variable.name} in units that cannot be used", str(error)
        )
    if change.needs_density:
        raise_input_error(
            source,
            f"gives the channel {variable.name} in {units!r}, a ratio of masses",
            f"Multiply it by the density of air to have {variable.units!r}",
        )
    given = given.rename(variable.name)
    given.attrs = {"units": units}
    return Channel(variable, given, change, None, source).load()


def _create(
    block: xr.Dataset, fields: xr.DataArray, partial: Path, name: Path, described: Variables
) -> dict[str, Any]:
    """Write the first block: static fields, coordinates, attributes; return the attributes of the group."""
    names = block["static_channel"].values.tolist()
    static = block["static"].reset_coords(drop=True).copy()
    by_name = dict(zip(names, static.values, strict=True))
    check_static(name, by_name)
    # In the convention of the axis.
    by_name["lon2d"] += 360 * np.round((fields["lon"].values - by_name["lon2d"]) / 360).astype(np.float32)
    static.attrs |= channel_attributes(described[each] for each in names if each in described)
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
