"""Values that a file does not have: default fill values of packed integers, absent chunks of zarr arrays."""

from typing import Any

import numpy as np
import xarray as xr

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
            values = xr.where(np.abs(values - unpacked) <= tolerance, float(fill), values, keep_attrs=True)
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
    return [
        (fill, fill * scale + offset, 0.4 * abs(scale) + 4 * rounding)
        for fill in fill_integers(kind)
        for rounding in [np.finfo(variable.dtype).eps * (abs(fill * scale) + abs(offset))]
    ]


def fill_integers(kind: np.dtype[Any]) -> list[int]:
    """Return the integers that mean a missing value in packed data: NetCDF's default, and the lowest one."""
    default = [_DEFAULT_FILLS[kind.name]] if kind.name in _DEFAULT_FILLS else []
    return [*default, int(np.iinfo(kind).min)] if default and kind.kind == "i" else default
