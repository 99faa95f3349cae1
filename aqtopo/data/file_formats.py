"""Formats of files from outside by their content, and refusals of other, special and damaged ones."""

import fcntl
import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from aqtopo.data.classic_netcdf import classic_size
from aqtopo.data.hdf5_heaps import check_heaps_of_file
from aqtopo.refusal import READ_ERRORS, raise_input_error
from aqtopo.safe_files import is_special, special_below

_ZARR_FILES = ("zarr.json", ".zgroup", ".zmetadata")

_OTHER_FORMATS = (
    (b"\x1f\x8b", "is compressed (gzip)", "Decompress it with `gunzip`"),
    (b"PK\x03\x04", "is compressed (zip)", "Decompress it with `unzip`"),
    (b"BZh", "is compressed (bzip2)", "Decompress it with `bunzip2`"),
    (b"\xfd7zXZ", "is compressed (xz)", "Decompress it with `unxz`"),
    (b"\x28\xb5\x2f\xfd", "is compressed (zstd)", "Decompress it with `unzstd`"),
    (b"GRIB", "is a GRIB file", "Convert it with `cdo -f nc4 copy`"),
    (b"version https://git-lfs", "is a pointer of Git LFS", "Fetch the file with `git lfs pull`"),
)
"""First bytes, fact and remedy of files that are often taken for NetCDF."""


def engine_of(path: Path) -> str:
    """Return xarray's engine by the content of a file, or refuse what is no NetCDF file or zarr store."""
    if not path.exists():
        raise_input_error(str(path), "does not exist: there is no such file", "Correct the path")
    if is_special(path):
        _refuse_special(path)
    if path.is_dir():
        _check_zarr_folder(path)
        return "zarr"
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise_input_error(str(path), f"cannot be read ({error.strerror})", "Correct its permissions")
    if not head:
        raise_input_error(str(path), "is empty (0 bytes)", "Download or write it again")
    for start, fact, remedy in _OTHER_FORMATS:
        if head.startswith(start):
            raise_input_error(str(path), fact, remedy)
    if not head.startswith((b"\x89HDF\r\n\x1a\n", b"CDF\x01", b"CDF\x02", b"CDF\x05")):
        begin = head.decode("utf-8", "replace").lstrip("\ufeff \t\r\n").split("\n")[0][:40].rstrip()
        shown = begin if begin.isprintable() else repr(head[:8])
        web = " but a web page" if begin.startswith("<") else ""
        raise_input_error(
            str(path),
            f"is not a NetCDF file{web}: it begins with {shown}",
            "Download it again, and look at its text for the server's reason"
            if web or begin.startswith("{")
            else "Name a NetCDF file or a zarr store",
        )
    if importlib.util.find_spec("netCDF4") is None:
        raise_input_error(
            str(path),
            "cannot be read without the package netCDF4",
            "Install it with `pip install 'aqtopo[prepare]'`",
        )
    if head.startswith(b"CDF"):
        _check_classic(path)
    return "netcdf4"


def _check_zarr_folder(path: Path) -> None:
    """Refuse a folder that is no zarr group, or that has a pipe, a device or a folder that cannot be read."""
    names = [path / name for name in _ZARR_FILES]
    if not any(name.is_file() or is_special(name) for name in names):
        raise_input_error(
            str(path),
            f"is a directory without a zarr group ({', '.join(_ZARR_FILES)})",
            "Name a NetCDF file or the folder of a zarr store. If it was copied, copy it again",
        )
    try:
        special = special_below(path)
    except OSError as error:
        raise_input_error(
            str(path), f"has a folder that cannot be read ({error.strerror})", "Correct its permissions"
        )
    if special is not None:
        _refuse_special(special)


def _refuse_special(path: Path) -> NoReturn:
    raise_input_error(str(path), "is a pipe or a device", "Name a NetCDF file or a zarr store")


def check_sizes(path: Path) -> None:
    """Refuse a NetCDF file whose arrays are larger than a file of its size can hold."""
    import netCDF4

    try:
        check_heaps_of_file(path)
        with netCDF4.Dataset(path) as file:
            arrays = {name: (variable.shape, variable.dtype) for name, variable in file.variables.items()}
    except READ_ERRORS as error:
        refuse_unreadable(path, error)
    for name, (shape, dtype) in arrays.items():
        check_size(path, name, shape, dtype.itemsize if isinstance(dtype, np.dtype) else 1)


def check_size(path: Path, name: str, shape: Sequence[int], item_bytes: int) -> None:
    """Check that a file can hold an array, before it takes memory.

    Raises:
        ValueError: the array has more than 256 MiB and than 1024 times the size of the file; zlib packs 1032
            to 1.
    """
    if math.prod(shape) * item_bytes > max(2**28, 2**10 * path.stat().st_size):
        raise_input_error(
            str(path),
            f"declares {' x '.join(map(str, shape))} values of {name}, more than its bytes can hold",
            "Download or copy it again",
        )


def _check_classic(path: Path) -> None:
    """Refuse a classic NetCDF file that is too short: the NetCDF library reads its end as zeros."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            needed = classic_size(file)
    except READ_ERRORS as error:
        _refuse_damaged(path, error)
    if size < needed:
        _refuse_damaged(path, ValueError(f"{needed} bytes are declared"))


def refuse_unreadable(path: Path, error: Exception) -> NoReturn:
    """Refuse a file or zarr store that a library could not read: it is locked or damaged."""
    if path.is_file():
        with path.open("rb") as file:
            try:
                # HDF5 locks files in the same way.
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise_input_error(
                    str(path), "is locked: another program is writing it", "Wait until that program has ended"
                )
            except OSError:
                pass  # a file system without locks
    _refuse_damaged(path, error)


def _refuse_damaged(path: Path, error: Exception) -> NoReturn:
    if path.is_dir():
        raise_input_error(str(path), f"is a damaged zarr store ({error})", "Copy or write it again")
    size = path.stat().st_size
    cause = str(error).split("\n")[0].split(": '/")[0]
    raise_input_error(
        str(path),
        f"is damaged or incomplete: it has {size} bytes, which do not fit its header ({cause})",
        "Download or copy it again, and compare its size with the source's",
    )
