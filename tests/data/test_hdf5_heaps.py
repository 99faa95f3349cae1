"""Damaged heaps of NetCDF-4 files, in which the HDF5 library loops forever, are refused."""

from pathlib import Path

import pytest

from aqtopo.data.hdf5_heaps import check_heaps
from aqtopo.data.outside import open_outside
from aqtopo.data.prepare.hourly import UnusableFileError, read_grid
from tests.data.outside_files import make_hours
from tests.data.prepare.raw import hourly_file, lambert_grid


def damaged(content: bytes, size: int) -> bytes:
    """Return a file whose first heap has a first object of another size, as free space."""
    place = content.index(b"GCOL") + 16
    return content[:place] + bytes(8) + size.to_bytes(8, "little") + content[place + 16 :]


@pytest.mark.parametrize("size", [0, 2**64 - 8])
def test_a_heap_without_end_is_refused(tmp_path: Path, size: int) -> None:
    content = hourly_file(*lambert_grid(5, 6, 400e3), 0)
    check_heaps(content)
    with pytest.raises(UnusableFileError, match=f"object of the HDF5 heap .* has the impossible size {size}"):
        read_grid(damaged(content, size))
    path = tmp_path / "a.nc"
    make_hours().to_netcdf(path)
    assert open_outside(path)
    path.write_bytes(damaged(path.read_bytes(), size))
    with pytest.raises(ValueError, match=r"a\.nc is damaged or incomplete.*an object of the HDF5 heap"):
        open_outside(path)


def test_heaps_that_overlap_are_refused_soon() -> None:
    heaps, objects = 1000, (1).to_bytes(16, "little") * 4000  # empty objects
    content = b""
    for number in range(heaps):  # each has one object that ends where the empty objects begin
        to_objects = 32 * (heaps - number - 1)
        size = 32 + to_objects + len(objects)
        content += b"GCOL\x01\0\0\0" + size.to_bytes(8, "little")
        content += (1).to_bytes(8, "little") + to_objects.to_bytes(8, "little")
    with pytest.raises(ValueError, match=r"heap at byte \d+ overlaps others"):
        check_heaps(content + objects)
