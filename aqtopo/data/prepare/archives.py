"""Search for the hourly files of a reanalysis, unpacked or in daily zip and tar archives.

Members are read into memory and never written, so their names cannot escape a folder. Links and devices are
skipped; files and members larger than `MAX_BYTES` are refused unread. No member of a gzip file is used before
its checksum, which is at its end, is verified. What is passed over is named with the reason.
"""

import gzip
import os
import re
import stat
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path, PurePosixPath

import numpy as np

from aqtopo.data.schema import Hours
from aqtopo.refusal import READ_ERRORS
from aqtopo.safe_files import is_special

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
MAX_BYTES = 256 * 2**20
"""Maximum size of an hourly file; CAQRA's have 8 MB."""

_BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Compressions that zipfile decompresses incrementally. 179 bytes of bzip2 can hold 64 MB."""

MAX_HEADER_BYTES = 2**20
"""Maximum size of an extended header of a tar; it holds a name and a few numbers."""

_EXTENDED_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)

_ZIP_END, _ZIP_END_BYTES = b"PK\5\6", 22
_IN_ZIP64 = 2**16 - 1
"""Count in a zip's end record if the real count is in its zip64 record."""

_BLOCK, _NO_BLOCK = tarfile.BLOCKSIZE, bytes(tarfile.BLOCKSIZE)
_PIECE_BYTES = 2**20

_HOURLY_NAME = re.compile(r"CN-Reanalysis(\d{8})(\d{2})\.nc", re.IGNORECASE)
_DATE = re.compile(r"(?<!\d)(\d{8})(?!\d)")
_HOUR = np.timedelta64(1, "h")
_IGNORED = {
    ARCHIVE_SUFFIXES: "is an archive in an archive: unpack the outer one",
    (".rar", ".7z", ".bz2", ".xz", ".zst", ".gz"): "is packed in a way that is not read: repack it as zip",
    (".part", ".partial", ".crdownload", ".tmp"): "is an unfinished download: download it again",
}
"""Reasons by the suffix of a name without an hour."""

_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, *READ_ERRORS)


@dataclass(frozen=True)
class HourlyFile:
    """Hourly file as found.

    Attributes:
        stamp: hour in its name, in the data set's time zone.
        where: path, and member if it is in an archive, for messages.
        content: its bytes; None if unreadable.
        problem: reason if unreadable.
        ignored: it is no hourly file, or of no day, for the reason in `problem`.
    """

    stamp: np.datetime64
    where: str
    content: bytes | None
    problem: str = ""
    ignored: bool = False


@dataclass(frozen=True)
class Inventory:
    """Hourly files and archives under a folder, by the date in their names.

    Attributes:
        loose: unpacked hourly files by hour.
        dated: archives by the date in their name.
        undated: archives without a date in their name; they are searched for every day.
        found: size and time of modification [ns] of each of them, when the folder was searched.
        ignored: names of other files and linked folders, with the reason.
        source: the folder.
    """

    loose: Mapping[np.datetime64, Sequence[Path]]
    dated: Mapping[np.datetime64, Sequence[Path]]
    undated: Sequence[Path]
    found: Mapping[Path, list[int]]
    ignored: Sequence[str]
    source: Path

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
        ignored: list[str] = []
        for path in sorted(_walk(source, ignored) if source.is_dir() else [source]):
            stamp, date = stamp_of(path.name), _date_of(path.name)
            if stamp is not None:
                loose[stamp].append(path)
            elif path.name.lower().endswith(ARCHIVE_SUFFIXES) and not path.name.startswith("._"):
                (undated if date is None else dated[date]).append(path)
            else:
                ignored.append(f"{path} {_why_ignored(path.name)}")
        files = [path for paths in (*loose.values(), *dated.values(), undated) for path in paths]
        if not files:
            raise ValueError(
                f"{source} holds neither CN-ReanalysisYYYYMMDDHH.nc files nor archives "
                f"({', '.join(ARCHIVE_SUFFIXES)}). Give the folder of the downloaded data set."
                + (f" {len(ignored)} files are passed over; {ignored[0]}." if ignored else "")
            )
        return cls(loose, dated, undated, {path: _version(path) for path in files}, ignored, source)

    def paths(self, stamps: Hours) -> list[Path]:
        """Return the files and archives that may hold the hours `stamps` (in the data set's time zone)."""
        return list(dict.fromkeys([*self._own(stamps), *self._evening(stamps[0])]))

    def versions(self, stamps: Hours) -> dict[str, list[int]]:
        """Return the size and time of these files by their paths in the folder."""
        return {str(path.relative_to(self.source)): self.found[path] for path in self.paths(stamps)}

    def _own(self, stamps: Hours) -> list[Path]:
        files = [path for stamp in stamps for path in self.loose.get(stamp, ())]
        dates = np.unique(stamps.astype("datetime64[D]"))
        archives = [path for date in dates for path in self.dated.get(date, ())]
        return [*files, *archives, *self.undated]

    def _evening(self, stamp: np.datetime64) -> Sequence[Path]:
        """Return the archives that may hold the hour 0 of a day as hour 24 of the day before."""
        date = stamp.astype("datetime64[D]")
        return self.dated.get(date - 1, ()) if stamp == date else ()

    def read(self, stamps: Hours) -> Iterator[HourlyFile]:
        """Yield the hourly files of `stamps`, one in memory at a time; a damaged one has a `problem`.

        A damaged archive yields its readable members, none if it is compressed with gzip, then one file whose
        `stamp` is NaT.
        """
        read: set[np.datetime64] = set()
        for path in self._own(stamps):
            for file in _files(path, set(stamps)):
                read.add(file.stamp)
                yield file
        if stamps[0] not in read:
            for path in self._evening(stamps[0]):
                yield from _files(path, {stamps[0]})


def stamp_of(name: str) -> np.datetime64 | None:
    """Return the hour in the name of an hourly file, 24 is 0 of the next day; None for other names."""
    match = _HOURLY_NAME.fullmatch(_last_part(name))
    date = None if match is None else _date_of(match[1])
    if match is None or date is None or int(match[2]) > 24:
        return None
    hour: np.datetime64 = date.astype("datetime64[h]") + int(match[2]) * _HOUR
    return hour


def stamp_name(stamp: np.datetime64) -> str:
    """Return the name of the hourly file of an hour."""
    return f"CN-Reanalysis{re.sub('[-T]', '', str(stamp.astype('datetime64[h]')))}.nc"


def _last_part(name: str) -> str:
    r"""Return a name without its folders; some programs of Windows write them with `\`."""
    return PurePosixPath(name.replace("\\", "/")).name


def _walk(source: Path, ignored: list[str]) -> Iterator[Path]:
    """Yield the files below a folder; folders that are links or cannot be listed are added to `ignored`."""

    def unlisted(error: OSError) -> None:
        ignored.append(f"{error.filename} cannot be listed ({error.strerror})")

    for folder, folders, names in os.walk(source, onerror=unlisted):
        links = [path for name in folders if (path := Path(folder, name)).is_symlink()]
        ignored += [f"{path} is a link to a folder, which is not followed" for path in links]
        yield from (Path(folder, name) for name in names)


def _version(path: Path) -> list[int]:
    try:
        found = path.stat()
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]


def _why_ignored(name: str) -> str:
    if _last_part(name).startswith("._"):
        return "is a resource file of macOS"
    for suffixes, reason in _IGNORED.items():
        if name.lower().endswith(suffixes):
            return reason
    return "has no hour in its name"


def _ignored_member(path: Path, name: str, stamp: np.datetime64 | None) -> Iterator[HourlyFile]:
    """Yield a member of an archive that is read for no day, with the reason."""
    date = _date_of(path.name)
    if stamp is None:
        reason = _why_ignored(name)
    elif date is None or date <= stamp <= date + np.timedelta64(1, "D"):
        return
    else:
        reason = "is of another day than its archive"
    yield HourlyFile(np.datetime64("NaT"), f"{path}:{name}", None, reason, ignored=True)


def _date_of(name: str) -> np.datetime64 | None:
    for digits in _DATE.findall(name):
        try:
            return np.datetime64(f"{digits[:4]}-{digits[4:6]}-{digits[6:]}", "D")
        except ValueError:
            continue
    return None


def _files(path: Path, wanted: Collection[np.datetime64]) -> Iterator[HourlyFile]:
    """Yield the hours `wanted` of a file or archive."""
    if stamp_of(path.name) is not None:
        yield _file(path)
        return
    if is_special(path):
        yield HourlyFile(np.datetime64("NaT"), str(path), None, "is a pipe or a device")
        return
    try:
        yield from (_zip if path.name.lower().endswith(".zip") else _tar)(path, wanted)
    except _DAMAGE as error:
        yield HourlyFile(np.datetime64("NaT"), str(path), None, f"is damaged ({_text(error)})")


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


def _zip(path: Path, wanted: Collection[np.datetime64]) -> Iterator[HourlyFile]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            stamp = stamp_of(member.filename)
            if member.is_dir():
                continue
            if stamp is None or stamp not in wanted:
                yield from _ignored_member(path, member.filename, stamp)
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
                except _DAMAGE as error:
                    problem = f"is damaged ({_text(error)})"
            yield HourlyFile(stamp, f"{path}:{member.filename}", content, problem)
    _check_number(path, len(archive.infolist()))


def _check_number(path: Path, found: int) -> None:
    """Check the number of members that a zip's end record declares, which `zipfile` ignores.

    Raises:
        BadZipFile: the directory lists fewer or more members, or none.
    """
    with path.open("rb") as file:
        file.seek(-min(path.stat().st_size, _ZIP_END_BYTES + 2**16), os.SEEK_END)
        tail = file.read()
    declared = int.from_bytes(tail[tail.rindex(_ZIP_END) + 10 :][:2], "little")
    if found == 0 or declared not in (found % 2**16, _IN_ZIP64):
        raise zipfile.BadZipFile(f"it lists {found} of {declared} members")


def _tar(path: Path, wanted: Collection[np.datetime64]) -> Iterator[HourlyFile]:
    with path.open("rb") if path.name.lower().endswith(".tar") else gzip.GzipFile(path) as file:
        if isinstance(file, gzip.GzipFile):
            while file.read(_PIECE_BYTES):  # verifies the checksum
                pass
            file.seek(0)
        found = 0
        for archive, member in _tar_members(file):
            found += 1
            stamp, where = stamp_of(member.name), f"{path}:{member.name}"
            if member.isdir():
                continue
            if stamp is None or stamp not in wanted:
                yield from _ignored_member(path, member.name, stamp)
                continue
            if not member.isfile():
                yield HourlyFile(stamp, where, None, "is a link or a device")
                continue
            if member.size > MAX_BYTES:
                yield HourlyFile(stamp, where, None, _too_large(member.size))
                continue
            content = archive.extractfile(member)
            assert content is not None
            yield HourlyFile(stamp, where, content.read())
        if not found:
            raise tarfile.ReadError("it has no members")


class _BoundedHeader(tarfile.TarInfo):
    """Header of a member; extended headers, which `tarfile` reads into memory, have a largest size."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        extended = self.type in _EXTENDED_HEADERS
        if extended and self.size > MAX_HEADER_BYTES:
            fault = f"an extended header of {self.size} bytes, more than the maximum of {MAX_HEADER_BYTES}"
            raise tarfile.ReadError(fault)
        found: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
        return found


def _tar_members(file: BufferedReader | gzip.GzipFile) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield the members of one or several concatenated tars; each must end with a block of zeros.

    Raises:
        ReadError: a header is damaged, or the end is missing; `tarfile` takes both for the end.
    """
    block = b"-"
    while block:
        with tarfile.open(fileobj=file, mode="r:", tarinfo=_BoundedHeader) as archive:
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
