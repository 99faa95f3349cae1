"""Values that a file does not have: default fill values of packed integers, absent chunks of zarr arrays."""

import os
import warnings
from collections.abc import Collection
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray

from aqtopo.data import zarr_codecs  # noqa: F401  (checks chunks)
from aqtopo.refusal import raise_input_error

ZARR_ARRAYS = "zarr_arrays"
"""Attribute of a variable from zarr stores: the folders of its arrays."""

_DEFAULT_FILLS = {
    "int16": -32767,
    "uint16": 2**16 - 1,
    "int32": -2147483647,
    "uint32": 2**32 - 1,
    "int64": -9223372036854775806,
    "uint64": 2**64 - 2,
}
"""NetCDF's default fill values (netcdf.h). Values of one byte have none, as in the NetCDF library."""

_DECLARED = ("_FillValue", "missing_value")

MAX_COORDINATE_BYTES = 2**28
"""Largest size of a coordinate: a damaged shape must not take all memory."""
MAX_CHUNKS = 2**20
"""Largest number of absent chunks; a damaged shape declares any number of them."""


def restore_fill_values(dataset: xr.Dataset) -> xr.Dataset:
    """Return a decoded dataset in which fill values of packed integers are the integers again.

    Unpacking an undeclared -32767 gives a small number that looks like data. The integer is refused or masked
    as other undeclared fill values are.
    """
    changed = {}
    for name, variable in dataset.data_vars.items():
        found = _packed_fills(variable)
        if not found:
            continue
        # Chunks keep a lazy array lazy.
        values = variable if variable.variable._in_memory else variable.chunk()
        for fill, unpacked, tolerance in found:
            values = values.where(~(np.abs(values - unpacked) <= tolerance), float(fill))
        changed[name] = values.astype(variable.dtype).assign_attrs(variable.attrs)
    return dataset.assign(changed)


def _packed_fills(variable: xr.DataArray) -> list[tuple[int, float, float]]:
    """Return undeclared fill values of a variable: the integer, its unpacked value and a tolerance."""
    encoding = variable.encoding
    kind = np.dtype(encoding.get("dtype", "float32"))
    packed = kind.name in _DEFAULT_FILLS and {"scale_factor", "add_offset"} & encoding.keys()
    if not packed or variable.dtype.kind != "f" or "_Unsigned" in encoding:
        return []
    if any(encoding.get(key) is not None for key in _DECLARED):
        return []
    scale, offset = (
        float(np.asarray(encoding.get(key, usual)).item())
        for key, usual in (("scale_factor", 1.0), ("add_offset", 0.0))
    )
    # The lowest integer is the other usual choice.
    fills = [_DEFAULT_FILLS[kind.name], *([int(np.iinfo(kind).min)] if kind.kind == "i" else [])]
    return [
        (fill, fill * scale + offset, 0.4 * abs(scale) + 4 * rounding)
        for fill in fills
        for rounding in [np.finfo(variable.dtype).eps * (abs(fill * scale) + abs(offset))]
    ]


class AbsentChunks(NamedTuple):
    """Chunks (files) of a zarr array that do not exist; zarr reads them as its fill value.

    Attributes:
        keys: their names.
        total: number of chunks of the array.
        first: index of the first cell of the first one.
        cells: number of cells in all of them.
    """

    keys: list[str]
    total: int
    first: tuple[int, ...]
    cells: int


def absent_chunks(path: Path) -> AbsentChunks | None:
    """Return the chunks, or shards, that an array in a folder lacks; None if it has all of them."""
    array = zarr.open_array(path, mode="r")
    sizes = array.shards or array.chunks
    lengths = [-(-length // size) for length, size in zip(array.shape, sizes, strict=True)]
    files = [Path(folder, file) for folder, _, found in os.walk(path) for file in found]
    total = prod(lengths)
    if total > MAX_CHUNKS + len(files):
        raise ValueError(f"{path.name} has {len(files)} files, and its metadata declare {total} chunks")
    present = {file.relative_to(path).as_posix() for file in files}
    key = array.metadata.encode_chunk_key
    absent = [place for place in product(*map(range, lengths)) if key(place) not in present]
    if not absent:
        return None
    cells = sum(
        prod(min(size, length - i * size) for i, size, length in zip(place, sizes, array.shape, strict=True))
        for place in absent
    )
    first = tuple(i * size for i, size in zip(absent[0], sizes, strict=True))
    return AbsentChunks([key(place) for place in absent], total, first, cells)


def lost_coordinate(path: Path, names: Collection[str]) -> str | None:
    """Return which coordinate of a zarr group has lost chunks or is too large, as part of a message, or None.

    A single value that equals the fill value, such as hour 0, is no loss: writers leave out its chunk.

    Args:
        path: folder of the group.
        names: names of coordinates in lower case, besides those of dimensions.
    """
    for name, array in zarr.open_group(path, mode="r", use_consolidated=False).arrays():
        dims: Any = array.attrs.get("_ARRAY_DIMENSIONS", getattr(array.metadata, "dimension_names", None))
        if name not in (dims or ()) and name.lower() not in names:
            continue
        if array.nbytes > MAX_COORDINATE_BYTES:
            return f"declares {' x '.join(map(str, array.shape))} values of the coordinate {name}, too many"
        absent = absent_chunks(path / name)
        if absent is None:
            continue
        values = np.asarray(array[...])
        if absent.cells > 1 or values.dtype.kind not in "iuf" or not _is_monotonic(values.ravel()):
            return f"has lost {_described(absent)} of the coordinate {name}"
    return None


def _is_monotonic(values: NDArray[Any]) -> bool:
    steps = np.diff(values)
    return bool(np.isfinite(values).all() and (np.all(steps > 0) or np.all(steps < 0)))


def zarr_arrays(dataset: xr.Dataset) -> dict[str, str]:
    """Return the folders of the variables that are still as they were read from a zarr store on disk."""
    group = Path(str(dataset.encoding.get("source", "")))
    return {
        str(name): str(group / str(name))
        for name, variable in dataset.data_vars.items()
        if "preferred_chunks" in variable.encoding
        and any((group / str(name) / file).is_file() for file in ("zarr.json", ".zarray"))
    }


def check_chunks(path: Path, zeros_are_usual: bool) -> None:
    """Refuse an array with absent chunks, unless they are read as missing; then warn.

    Args:
        path: folder of the array.
        zeros_are_usual: chunks of zeros, which writers leave out, are usual in this variable.

    Raises:
        ValueError: chunks are absent, and their values would be read as data.
    """
    absent = absent_chunks(path)
    if absent is None:
        return
    with xr.open_dataset(path.parent, engine="zarr", consolidated=False, decode_times=False) as dataset:
        value = dataset[path.name][absent.first].values.item()
    if np.isnan(value) or (value == 0 and zeros_are_usual):
        meaning = "missing" if np.isnan(value) else "0"
        warnings.warn(
            f"{path.parent} lacks {_described(absent)} of {path.name}: their values count as {meaning}",
            stacklevel=2,
        )
        return
    raise_input_error(
        str(path.parent),
        f"lacks {_described(absent)} of {path.name}, which would be read as {value:g}",
        "Copy the store again. If its values are so, write it with `d.to_zarr(..., write_empty_chunks=True)`",
    )


def _described(absent: AbsentChunks) -> str:
    return f"{len(absent.keys)} of {absent.total} chunks (the first is {absent.keys[0]})"
