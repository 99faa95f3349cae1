"""Search for the hourly files of a reanalysis, unpacked or in daily zip and tar archives.

Members are read into memory and never written, so their names cannot escape a folder. Links and devices are
skipped; files and members larger than `MAX_BYTES` are refused unread. No member of a gzip file is used before
its checksum, which is at its end, is verified.
"""

import gzip
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path, PurePosixPath

import numpy as np

from aqtopo.data.schema import Hours

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
MAX_BYTES = 256 * 2**20
"""Maximum size of an hourly file; CAQRA's have 8 MB."""

_BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Compressions that zipfile decompresses incrementally. 179 bytes of bzip2 can hold 64 MB."""

_BLOCK, _NO_BLOCK = tarfile.BLOCKSIZE, bytes(tarfile.BLOCKSIZE)
_PIECE_BYTES = 2**20

_HOURLY_NAME = re.compile(r"CN-Reanalysis(\d{10})\.nc")
_DATE = re.compile(r"(?<!\d)(\d{8})(?!\d)")
_DAMAGE = (OSError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError)
_DAMAGE_OF_MEMBER = (*_DAMAGE, NotImplementedError, RuntimeError)
"""zipfile raises RuntimeError for encrypted members and NotImplementedError for unknown formats."""


@dataclass(frozen=True)
class HourlyFile:
    """Hourly file as found.

    Attributes:
        stamp: hour in its name, in the data set's time zone.
        where: path, and member if it is in an archive, for messages.
        content: its bytes; None if unreadable.
        problem: reason if unreadable.
    """

    stamp: np.datetime64
    where: str
    content: bytes | None
    problem: str = ""


@dataclass(frozen=True)
class Inventory:
    """Hourly files and archives under a folder, by the date in their names.

    Attributes:
        loose: unpacked hourly files by hour.
        dated: archives by the date in their name.
        undated: archives without a date in their name; they are searched for every day.
    """

    loose: Mapping[np.datetime64, Sequence[Path]]
    dated: Mapping[np.datetime64, Sequence[Path]]
    undated: Sequence[Path]

    @classmethod
    def of(cls, source: Path) -> "Inventory":
        """Search a folder recursively, or a single archive.

        Raises:
            ValueError: the folder is missing, or holds neither hourly files nor archives.
        """
        if not source.exists():
            raise ValueError(f"{source} does not exist. Give the folder of the daily archives or files.")
        loose: defaultdict[np.datetime64, list[Path]] = defaultdict(list)
        dated: defaultdict[np.datetime64, list[Path]] = defaultdict(list)
        undated: list[Path] = []
        for path in sorted(source.rglob("*") if source.is_dir() else [source]):
            stamp = stamp_of(path.name)
            if stamp is not None:
                loose[stamp].append(path)
            elif path.name.lower().endswith(ARCHIVE_SUFFIXES):
                date = _date_of(path.name)
                (undated if date is None else dated[date]).append(path)
        if not (loose or dated or undated):
            raise ValueError(
                f"{source} holds neither CN-ReanalysisYYYYMMDDHH.nc files nor archives "
                f"({', '.join(ARCHIVE_SUFFIXES)}). Give the folder of the downloaded data set."
            )
        return cls(loose, dated, undated)

    def paths(self, stamps: Hours) -> list[Path]:
        """Return the files and archives that may hold the hours `stamps` (in the data set's time zone)."""
        files = [path for stamp in stamps for path in self.loose.get(stamp, ())]
        dates = np.unique(stamps.astype("datetime64[D]"))
        archives = [path for date in dates for path in self.dated.get(date, ())]
        return [*files, *archives, *self.undated]

    def read(self, stamps: Hours) -> Iterator[HourlyFile]:
        """Yield the hourly files of `stamps`, one in memory at a time; a damaged one has a `problem`.

        A damaged archive yields its readable members, none if it is compressed with gzip, then one file whose
        `stamp` is NaT.
        """
        wanted = {stamp_name(stamp): stamp for stamp in stamps}
        for path in self.paths(stamps):
            if stamp_of(path.name) is not None:
                yield _file(path)
                continue
            try:
                yield from (_zip if path.name.lower().endswith(".zip") else _tar)(path, wanted)
            except _DAMAGE as error:
                yield HourlyFile(np.datetime64("NaT"), str(path), None, f"is damaged ({_text(error)})")


def stamp_of(name: str) -> np.datetime64 | None:
    """Return the hour in the name of an hourly file; None for other names."""
    match = _HOURLY_NAME.fullmatch(PurePosixPath(name).name)
    if match is None:
        return None
    digits = match[1]
    try:
        return np.datetime64(f"{digits[:4]}-{digits[4:6]}-{digits[6:8]}T{digits[8:]}", "h")
    except ValueError:
        return None


def stamp_name(stamp: np.datetime64) -> str:
    """Return the name of the hourly file of an hour."""
    return f"CN-Reanalysis{re.sub('[-T]', '', str(stamp.astype('datetime64[h]')))}.nc"


def _date_of(name: str) -> np.datetime64 | None:
    for digits in _DATE.findall(name):
        try:
            return np.datetime64(f"{digits[:4]}-{digits[4:6]}-{digits[6:]}", "D")
        except ValueError:
            continue
    return None


def _file(path: Path) -> HourlyFile:
    stamp, where = stamp_of(path.name), str(path)
    assert stamp is not None
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            return HourlyFile(stamp, where, None, "is not a regular file")
        if found.st_size > MAX_BYTES:
            return HourlyFile(stamp, where, None, _too_large(found.st_size))
        return HourlyFile(stamp, where, path.read_bytes())
    except OSError as error:
        return HourlyFile(stamp, where, None, f"cannot be read ({error})")


def _zip(path: Path, wanted: Mapping[str, np.datetime64]) -> Iterator[HourlyFile]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            stamp = wanted.get(PurePosixPath(member.filename).name)
            if member.is_dir() or stamp is None:
                continue
            content, problem = None, ""
            if member.file_size > MAX_BYTES:
                problem = _too_large(member.file_size)
            elif member.compress_type not in _BOUNDED:
                problem = "is not compressed with deflate. Repack the archive."
            else:
                try:
                    # archive.read would decompress everything even if the header states a small size.
                    with archive.open(member) as file:
                        content = file.read(member.file_size + 1)
                except _DAMAGE_OF_MEMBER as error:
                    problem = f"is damaged ({_text(error)})"
            yield HourlyFile(stamp, f"{path}:{member.filename}", content, problem)


def _tar(path: Path, wanted: Mapping[str, np.datetime64]) -> Iterator[HourlyFile]:
    with path.open("rb") if path.name.lower().endswith(".tar") else gzip.GzipFile(path) as file:
        if isinstance(file, gzip.GzipFile):
            while file.read(_PIECE_BYTES):  # verifies the checksum
                pass
            file.seek(0)
        for archive, member in _tar_members(file):
            stamp, where = wanted.get(PurePosixPath(member.name).name), f"{path}:{member.name}"
            if not member.isfile() or stamp is None:
                continue
            if member.size > MAX_BYTES:
                yield HourlyFile(stamp, where, None, _too_large(member.size))
                continue
            content = archive.extractfile(member)
            assert content is not None
            yield HourlyFile(stamp, where, content.read())


def _tar_members(file: BufferedReader | gzip.GzipFile) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield the members of one or several concatenated tars; each must end with a block of zeros.

    Raises:
        ReadError: a header is damaged, or the end is missing; `tarfile` takes both for the end.
    """
    block = b"-"
    while block:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                yield archive, member
            end = archive.offset
        file.seek(end)
        block = file.read(_BLOCK)
        if block != _NO_BLOCK:
            raise tarfile.ReadError(f"no header and no end at byte {end}")
        while block == _NO_BLOCK:
            block = file.read(_BLOCK)
        file.seek(-len(block), os.SEEK_CUR)


def _too_large(size: int) -> str:
    return f"has {size} bytes, more than the maximum of {MAX_BYTES}"


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
