"""A store as a CF dataset: one variable for each field."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from aqtopo.data.descriptions import MASK
from aqtopo.data.schema import COORDINATE_ATTRIBUTES, HOURS_PER_SHARD
from aqtopo.data.store import open_store

_MASK_ATTRIBUTES = {
    "long_name": "cells of the loss and the scores",
    "units": "1",
    "flag_values": [0.0, 1.0],
    "flag_meanings": "left_out counted",
}


def open_dataset(path: str | Path) -> xr.Dataset:
    """Open a store as a lazy dataset with one variable for each field.

    Args:
        path: folder of the store.

    Returns:
        Hourly fields (time, lat, lon) and static fields (lat, lon) by short name, without `lat2d` and
        `lon2d`, with the CF attributes `units`, `long_name` and `standard_name`. `to_netcdf` and
        `to_zarr` can write it.

    Raises:
        ValueError: as `aqtopo.data.open_store`.
    """
    store = open_store(path)
    chunks = {"time": HOURS_PER_SHARD, "channel": -1, "lat": -1, "lon": -1}
    stacked = xr.open_zarr(path, zarr_format=3, consolidated=False, chunks=chunks).drop_encoding()
    attributes: dict[str, Mapping[str, Any]] = {
        name: variable.attributes for name, variable in store.variables.items()
    }
    attributes[MASK] = _MASK_ATTRIBUTES
    fields = {
        name: stacked[array].isel({axis: place}, drop=True).drop_attrs().assign_attrs(attributes[name])
        for array, axis in (("fields", "channel"), ("static", "static_channel"))
        for place, name in enumerate(map(str, stacked[axis].values))
        if name not in ("lat2d", "lon2d")  # they repeat the axes, and CF has one latitude for a field
    }
    coordinates = {
        axis: (axis, stacked[axis].values, COORDINATE_ATTRIBUTES[axis]) for axis in ("time", "lat", "lon")
    }
    facts = {
        "Conventions": "CF-1.11",
        "source": store.source,
        "simulated": "yes" if store.simulated else "no",
    }
    return xr.Dataset(fields, attrs=facts).assign_coords(coordinates)
