"""Forecasts from outside by initial and lead time, on a store's grid: another model's, or of the weather."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import NoReturn

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from aqtopo.data.channels import Channel, count_outside, open_channel
from aqtopo.data.coordinates import AXES, rows_of
from aqtopo.data.outside import normalise, open_outside
from aqtopo.data.schema import Hours
from aqtopo.data.store import Store


@dataclass(frozen=True, eq=False)
class OtherForecasts:
    """Forecasts on a store's grid, loaded on demand.

    Attributes:
        name: the file's name without suffix; of several files, what their names begin with.
        source: the files, for messages.
        channels: a variable each (init_time, lead_time, lat, lon), cells in the store's order.
        init_times: (T,) UTC, in the order of `channels`.
    """

    name: str
    source: str
    channels: Sequence[Channel]
    init_times: Hours

    def at(self, init_times: Hours) -> NDArray[np.float32]:
        """Return the forecasts (B, K, C, H, W) from `init_times` (B,), all of which must exist.

        Raises:
            ValueError: the file is damaged, or a value is an undeclared fill value or impossible.
        """
        rows = [int(np.flatnonzero(self.init_times == time)[0]) for time in init_times]
        return np.stack([channel.load(init_time=rows).values.values for channel in self.channels], axis=2)

    def outside(self, values: NDArray[np.float32]) -> dict[str, int]:
        """Return the number of kept values (B, K, C, H, W) outside the valid range, by variable."""
        described = [channel.variable for channel in self.channels]
        return {each.name: count_outside(each, values[:, :, place]) for place, each in enumerate(described)}


def open_forecasts(
    paths: Path | Sequence[Path] | xr.Dataset, store: Store, names: Sequence[str], horizons_h: Sequence[int]
) -> OtherForecasts:
    """Open forecasts and check that they fit a store.

    Args:
        paths: NetCDF or zarr, one or several of different initial times; or an open dataset. Axes, names and
            units are recognised as `aqtopo.data.outside` does.
        store: its grid.
        names: C short names of variables.
        horizons_h: K lead times [h].

    Raises:
        ValueError: a file cannot be read, or variables, units, grid or lead times do not fit.
    """
    if isinstance(paths, xr.Dataset):
        dataset, name = normalise(paths, str(paths.encoding.get("source") or "the dataset")), "dataset"
    else:
        files = [paths] if isinstance(paths, Path) else list(paths)
        dataset = open_outside(files, [store.variables[each] for each in names])
        name = _name(files)
    source = str(dataset.encoding["source"])
    for axis in ("init_time", "lead_time"):
        if axis not in dataset.coords:
            _fail(source, f"has no {AXES[axis]}")
        if axis not in dataset.dims:
            dataset = dataset.expand_dims(axis)
    leads = dataset["lead_time"].values
    rows = {hours: np.flatnonzero(np.isclose(leads, hours, rtol=0, atol=1e-4)) for hours in horizons_h}
    absent = [hours for hours in horizons_h if not rows[hours].size]
    if absent:
        found, needed = (", ".join(f"{hours:g}" for hours in each) for each in (leads, horizons_h))
        what = f"has no lead time of {absent[0]} h (it has {found} h)"
        _fail(source, what, f"Give forecasts that have {needed} h")
    for axis, wanted, period in (("lat", store.lat, None), ("lon", store.lon, 360.0)):
        if axis not in dataset.dims:
            _fail(source, f"has no dimension of {AXES[axis]}s")
        rows_found = rows_of(dataset[axis].values, np.asarray(wanted, dtype=np.float64), period)
        if rows_found is None:
            what = f"is on another grid than {store.path}: its {AXES[axis]}s differ"
            _fail(source, what, "Interpolate it to that grid first")
        dataset = dataset.isel({axis: rows_found})
    dataset = dataset.isel(lead_time=[int(rows[hours][0]) for hours in horizons_h])
    dataset.encoding["source"] = source
    channels = [
        replace(open_channel(dataset, store.variables[name]), usual=store.mean.get(name, math.nan))
        for name in names
    ]
    for channel in channels:
        lost = [AXES[axis] for axis in ("init_time", "lead_time") if axis not in channel.given.dims]
        if lost:
            _fail(source, f"has {channel.given.name} without the dimension of {lost[0]}s")
    return OtherForecasts(name, source, channels, _init_times(source, dataset))


def _init_times(source: str, dataset: xr.Dataset) -> Hours:
    """Return the initial times as whole hours."""
    given = dataset["init_time"].values
    hours: Hours = given.astype("datetime64[h]")
    if (odd := given[hours != given]).size:
        _fail(source, f"has the initial time {odd[0]}, which is not a whole hour")
    return hours


def _name(files: Sequence[Path]) -> str:
    """Return the file's name without its suffix; of several files, what their names begin with."""
    same = takewhile(
        lambda letters: len(set(letters)) == 1, zip(*(path.stem for path in files), strict=False)
    )
    common = re.sub(r"[\d_.-]+$", "", "".join(letters[0] for letters in same))
    return files[0].stem if len(files) == 1 or not common else common


AS_WRITTEN = (
    "Give initial times, lead times, latitudes and longitudes as `aqtopo forecast` writes them, or with "
    "their CF standard names"
)


def _fail(source: str, what: str, remedy: str = AS_WRITTEN) -> NoReturn:
    raise ValueError(f"{source} {what}, so it cannot be used. {remedy}.")
