"""CF-1.11 layout of a forecast and of the truth, and its writer as zarr or NetCDF."""

import importlib.util
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from aqtopo.checkpoint.files import write_error
from aqtopo.safe_files import remove, replacing
from aqtopo.variables import Variable

CONVENTIONS = "CF-1.11"

_TIME_ENCODING = {"units": "hours since 1970-01-01", "calendar": "standard", "dtype": "int64"}


def lead_time_dataset(
    values: npt.NDArray[np.float32],
    *,
    init_time: np.datetime64,
    pollutants: Sequence[Variable],
    horizons_h: Sequence[int],
    lat: npt.NDArray[np.floating[Any]],
    lon: npt.NDArray[np.floating[Any]],
) -> xr.Dataset:
    """Return fields by lead time as a CF dataset, whose only global attribute is `Conventions`.

    Args:
        values: (K, C, H, W) in the units of `pollutants`, NaN where missing.
        init_time: initial time, UTC.
        pollutants: C descriptions.
        horizons_h: K lead times [h], whole hours.
        lat: (H,) latitudes [degrees north], in the order of the rows.
        lon: (W,) longitudes [degrees east].

    Returns:
        One float32 variable (lead_time, lat, lon) per pollutant; coordinates `init_time` (scalar),
        `lead_time` [h] and `time`, the valid time.
    """
    assert values.shape == (len(horizons_h), len(pollutants), len(lat), len(lon)), "(K, C, H, W)"
    initial, hours = init_time.astype("datetime64[ns]"), np.asarray(horizons_h, dtype=np.int64)
    dataset = xr.Dataset(
        {
            each.name: (("lead_time", "lat", "lon"), values[:, c].astype(np.float32), each.attributes)
            for c, each in enumerate(pollutants)
        },
        coords={
            "init_time": ((), initial, _COORDINATES["init_time"]),
            # A number of hours instead of a timedelta, because every CF reader supports it.
            "lead_time": ("lead_time", hours, _COORDINATES["lead_time"]),
            "time": ("lead_time", initial + hours.astype("timedelta64[h]"), _COORDINATES["time"]),
            "lat": ("lat", lat, _COORDINATES["lat"]),
            "lon": ("lon", lon, _COORDINATES["lon"]),
        },
        attrs={"Conventions": CONVENTIONS},
    )
    for name in ("init_time", "time"):
        dataset[name].encoding.update(_TIME_ENCODING)
    for name in ("lead_time", "lat", "lon"):
        # CF forbids missing values in coordinates; xarray declares one for floats.
        dataset[name].encoding["_FillValue"] = None
    return dataset


_COORDINATES: dict[str, dict[str, str]] = {
    "init_time": {
        "standard_name": "forecast_reference_time",
        "long_name": "initial time of the forecast (UTC)",
    },
    "lead_time": {
        "standard_name": "forecast_period",
        "long_name": "time since the initial time",
        "units": "hours",
    },
    "time": {"standard_name": "time", "long_name": "valid time (UTC)"},
    "lat": {"standard_name": "latitude", "long_name": "latitude", "units": "degrees_north", "axis": "Y"},
    "lon": {"standard_name": "longitude", "long_name": "longitude", "units": "degrees_east", "axis": "X"},
}
"""CF attributes of the coordinates."""


SUFFIXES = (".zarr", ".nc")


def check_output(path: Path, overwrite: bool = False) -> None:
    """Check that a forecast can be written to `path`, before it is computed.

    Raises:
        ValueError: the suffix is unknown, `path` exists, its directory is missing, or NetCDF has no writer.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"the output {path} must end in {' or '.join(SUFFIXES)}, which selects the format. "
            f"For example {path.with_suffix('.zarr')}."
        )
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists already. Choose another name, or pass --overwrite to replace it.")
    if path.is_dir() and not (path / "init_time").is_dir():
        # --overwrite must not delete a data store.
        raise ValueError(
            f"{path} is a directory, but not a forecast, so it is not replaced. Choose another name."
        )
    if not path.absolute().parent.is_dir():
        raise ValueError(f"the directory {path.parent} of the output {path} does not exist. Create it first.")
    if path.suffix == ".nc" and importlib.util.find_spec("netCDF4") is None:
        raise ValueError(
            f"writing {path} needs the package netCDF4, which is not installed. Install it with "
            f"`pip install 'aqtopo[report]'`, or write {path.with_suffix('.zarr')} instead."
        )


def write_forecast(dataset: xr.Dataset, path: Path, overwrite: bool = False) -> None:
    """Write a dataset to `path`, as zarr v3 or NetCDF-4 by its suffix.

    Raises:
        ValueError: as `check_output`, or `path` cannot be written.
    """
    check_output(path, overwrite)
    write_atomically(path, lambda temporary: _write(dataset, temporary, path.suffix))


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path beside `path`, then rename the file or folder to `path`.

    Raises:
        ValueError: `path` cannot be written.
    """
    try:
        with replacing(path) as temporary:
            write(temporary)
            if path.is_dir():
                remove(path)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error}. Choose a writable directory.") from error


def _write(dataset: xr.Dataset, path: Path, suffix: str) -> None:
    if suffix == ".nc":
        packed = {name: {"zlib": True, "complevel": 4} for name in dataset.data_vars}
        try:
            dataset.to_netcdf(path, engine="netcdf4", format="NETCDF4", encoding=packed)
        except (OSError, RuntimeError) as error:  # on a full disk: permission denied, or HDF error
            raise OSError(write_error(path, RuntimeError(error))) from error
        return
    with warnings.catch_warnings():
        # xarray warns that consolidated metadata are not part of zarr v3; other readers ignore them.
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        dataset.to_zarr(path, mode="w-", zarr_format=3, consolidated=True)
