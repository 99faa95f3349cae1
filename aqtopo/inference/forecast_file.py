"""Writing a forecast as zarr or NetCDF: aside first, then under its name, never over another by accident."""

import importlib.util
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import xarray as xr

SUFFIXES = (".zarr", ".nc")


def check_output(path: Path, overwrite: bool = False) -> None:
    """Refuse a place to which no forecast can be written; cheap, so it comes before the forecast is made.

    Raises:
        ValueError: the suffix is unknown, it exists, its directory does not, or NetCDF has no writer.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"the output {path} must end in {' or '.join(SUFFIXES)}, which says how to write it. "
            f"For example {path.with_suffix('.zarr')}."
        )
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists already. Choose another name, or pass --overwrite to replace it.")
    if path.is_dir() and not (path / "init_time").is_dir():
        # A slip of the finger must not cost a data store.
        raise ValueError(
            f"{path} is a directory, but not a forecast, so it is not replaced. Choose another name."
        )
    if not path.absolute().parent.is_dir():
        raise ValueError(f"the directory {path.parent} of the output {path} does not exist. Make it first.")
    if path.suffix == ".nc" and importlib.util.find_spec("netCDF4") is None:
        raise ValueError(
            f"writing {path} needs the package netCDF4, which is not installed. Install it with "
            f"`pip install 'aqtopo[report]'`, or write {path.with_suffix('.zarr')} instead."
        )


def write_forecast(dataset: xr.Dataset, path: Path, overwrite: bool = False) -> None:
    """Write a dataset to `path`, as zarr v3 or NetCDF-4 by its suffix.

    Raises:
        ValueError: as `check_output`, or the place cannot be written.
    """
    check_output(path, overwrite)
    write_aside(path, lambda aside: _write(dataset, aside, path.suffix))


def write_aside(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file or folder beside `path`, and put it in the place of `path` when it is whole.

    Raises:
        ValueError: the place cannot be written.
    """
    aside = path.with_name(f"{path.name}.partial")
    try:
        _remove(aside)
        write(aside)
        if path.is_dir():
            _remove(path)
        aside.replace(path)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error}. Choose a place that you may write to.") from error
    finally:
        _remove(aside)


def _write(dataset: xr.Dataset, path: Path, suffix: str) -> None:
    if suffix == ".nc":
        packed = {name: {"zlib": True, "complevel": 4} for name in dataset.data_vars}
        dataset.to_netcdf(path, engine="netcdf4", format="NETCDF4", encoding=packed)
        return
    with warnings.catch_warnings():
        # Readers that look for consolidated metadata, xarray first, warn where there is none; others skip it.
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        dataset.to_zarr(path, mode="w-", zarr_format=3, consolidated=True)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
