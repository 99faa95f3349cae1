"""Where the hourly files of a reanalysis lie: unpacked, or in daily zip and tar archives.

Members are read into memory and never written anywhere, so their names cannot lead out of a folder; links
and devices are passed over, and a file or member larger than any hourly file is refused unread.
"""

import re
import stat
import tarfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from aqtopo.data.schema import Hours

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
LARGEST_MEMBER = 256 * 2**20
"""Bytes of the largest hourly file believed; CAQRA's have 8 MB."""

_BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Compressions of which zipfile unpacks no more than it is asked for. 179 bytes of bzip2 can hold 64 MB."""

_HOURLY_NAME = re.compile(r"CN-Reanalysis(\d{10})\.nc")
_DATE = re.compile(r"(?<!\d)(\d{8})(?!\d)")
_DAMAGE = (OSError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError)
_DAMAGE_OF_MEMBER = (*_DAMAGE, NotImplementedError, RuntimeError)
"""zipfile says RuntimeError of an encrypted member and NotImplementedError of an unknown format."""


@dataclass(frozen=True)
class HourlyFile:
    """One hourly file as found.

    Attributes:
        stamp: the hour in its name, in the data set's own time zone.
        where: path, and member if it lies in an archive, for messages.
        content: its bytes; None if they cannot be read.
        problem: why they cannot be read.
    """

    stamp: np.datetime64
    where: str
    content: bytes | None
    problem: str = ""


@dataclass(frozen=True)
class Inventory:
    """The files under a folder that can hold hourly files, by the date in their names.

    Attributes:
        loose: unpacked hourly files by their hour.
        dated: archives by the date in their name.
        undated: archives whose name has no date; each is looked through for every day.
    """

    loose: Mapping[np.datetime64, tuple[Path, ...]]
    dated: Mapping[np.datetime64, tuple[Path, ...]]
    undated: tuple[Path, ...]

    @classmethod
    def of(cls, source: Path) -> "Inventory":
        """Look through a folder and those below it, or at a single archive.

        Raises:
            ValueError: there is no such folder, or nothing in it looks like an hourly file or an archive.
        """
        if not source.exists():
            raise ValueError(f"There is no {source}. Give the folder that holds the daily archives or files.")
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
                f"({', '.join(ARCHIVE_SUFFIXES)}). Give the folder that the data set was downloaded to."
            )
        return cls(_frozen(loose), _frozen(dated), tuple(undated))

    def sources(self, stamps: Hours) -> "Sources":
        """What may hold the hours `stamps` (in the data set's own time zone)."""
        dates = np.unique(stamps.astype("datetime64[D]"))
        archives = [path for date in dates for path in self.dated.get(date, ())]
        files = [path for stamp in stamps for path in self.loose.get(stamp, ())]
        return Sources(tuple(files), (*archives, *self.undated))


@dataclass(frozen=True)
class Sources:
    """The files of a few hours: unpacked ones, and archives that may hold others as well."""

    files: tuple[Path, ...]
    archives: tuple[Path, ...]

    def read(self, stamps: Hours) -> Iterator[HourlyFile]:
        """The hourly files of `stamps`, one in memory at a time; a damaged one comes with its problem.

        An archive that breaks off gives what lies before the damage and then one file without an hour
        (`stamp` is NaT) that says so.
        """
        wanted = {stamp_name(stamp) for stamp in stamps}
        for path in self.files:
            yield _file(path)
        for path in self.archives:
            try:
                yield from (_zip if path.name.lower().endswith(".zip") else _tar)(path, wanted)
            except _DAMAGE as error:
                yield HourlyFile(np.datetime64("NaT"), str(path), None, f"is damaged ({_said(error)})")


def stamp_of(name: str) -> np.datetime64 | None:
    """The hour in the name of an hourly file; None if it is none."""
    match = _HOURLY_NAME.fullmatch(PurePosixPath(name).name)
    if match is None:
        return None
    digits = match[1]
    try:
        return np.datetime64(f"{digits[:4]}-{digits[4:6]}-{digits[6:8]}T{digits[8:]}", "h")
    except ValueError:
        return None


def stamp_name(stamp: np.datetime64) -> str:
    """The name of the hourly file of an hour."""
    return f"CN-Reanalysis{re.sub('[-T]', '', str(stamp.astype('datetime64[h]')))}.nc"


def _date_of(name: str) -> np.datetime64 | None:
    for digits in _DATE.findall(name):
        try:
            return np.datetime64(f"{digits[:4]}-{digits[4:6]}-{digits[6:]}", "D")
        except ValueError:
            continue
    return None


def _frozen(found: Mapping[np.datetime64, Sequence[Path]]) -> dict[np.datetime64, tuple[Path, ...]]:
    return {key: tuple(paths) for key, paths in found.items()}


def _hourly(name: str, where: str, content: bytes | None, problem: str = "") -> HourlyFile:
    stamp = stamp_of(name)
    assert stamp is not None
    return HourlyFile(stamp, where, content, problem)


def _file(path: Path) -> HourlyFile:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            return _hourly(path.name, str(path), None, "is no plain file")
        if found.st_size > LARGEST_MEMBER:
            return _hourly(path.name, str(path), None, _too_large(found.st_size))
        return _hourly(path.name, str(path), path.read_bytes())
    except OSError as error:
        return _hourly(path.name, str(path), None, f"cannot be read ({error})")


def _zip(path: Path, wanted: set[str]) -> Iterator[HourlyFile]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name, where = PurePosixPath(member.filename).name, f"{path}:{member.filename}"
            if member.is_dir() or name not in wanted:
                continue
            if member.file_size > LARGEST_MEMBER:
                yield _hourly(name, where, None, _too_large(member.file_size))
                continue
            if member.compress_type not in _BOUNDED:
                yield _hourly(name, where, None, "is not compressed with deflate: pack the archive anew")
                continue
            try:
                # Not archive.read: a header may lie about the size, and that unpacks a GiB before it looks.
                with archive.open(member) as file:
                    content = file.read(member.file_size + 1)
                yield _hourly(name, where, content)
            except _DAMAGE_OF_MEMBER as error:
                yield _hourly(name, where, None, f"is damaged ({_said(error)})")


def _tar(path: Path, wanted: set[str]) -> Iterator[HourlyFile]:
    # "|" reads forward only: a compressed archive is unpacked once, and never held as a whole.
    compressed = not path.name.lower().endswith(".tar")
    with tarfile.open(path, "r|gz" if compressed else "r|") as archive:
        for member in archive:
            name, where = PurePosixPath(member.name).name, f"{path}:{member.name}"
            if not member.isfile() or name not in wanted:
                continue
            if member.size > LARGEST_MEMBER:
                yield _hourly(name, where, None, _too_large(member.size))
                continue
            content = archive.extractfile(member)
            assert content is not None
            yield _hourly(name, where, content.read())


def _too_large(size: int) -> str:
    return f"has {size} bytes, which no hourly file has"


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
