"""Safe writing beside the files of others: temporary paths, removal, and refusal of links."""

import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

UNFINISHED = ".tmp"
"""End of the names of temporary files and folders."""


def temporary_path(path: Path, end: str = UNFINISHED) -> Path:
    """Return a path beside `path` that nothing else uses: its name has a random part."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}{end}")


def check_writable(folder: Path) -> None:
    """Create and remove a file in a folder: access bits mean nothing for root or on read-only file systems.

    Raises:
        OSError: the folder cannot be written.
    """
    with tempfile.TemporaryFile(dir=folder):
        pass


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a file or folder; then rename it to `path`, or remove it after an error.

    A folder replaces only an empty folder.
    """
    temporary = temporary_path(path)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Remove a file, a folder or a link, but not what the link leads to; a missing path is ignored."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def is_special(path: Path) -> bool:
    """Return True for a pipe, a device or a socket, or a link to one: reading it may never end."""
    return path.exists() and not path.is_file() and not path.is_dir()


def special_in(folder: Path, name: str) -> Path | None:
    """Return a special file of this name in a folder or in a folder directly below it, if there is one."""
    folders = [folder, *(Path(entry.path) for entry in os.scandir(folder) if entry.is_dir())]
    return next((path for each in folders if is_special(path := each / name)), None)


def special_below(folder: Path) -> Path | None:
    """Return a special file below a folder, if there is one.

    Links to folders are followed, because a zarr store may have them; each folder is read once.
    """
    left, seen = [folder], set()
    while left:
        path = left.pop()
        status = path.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(path) as entries:
            for entry in entries:
                inner = Path(entry.path)
                # Unlike an entry, a path takes a link to itself for a missing file.
                kind = inner if entry.is_symlink() else entry
                if kind.is_dir():
                    left.append(inner)
                elif not kind.is_file() and is_special(inner):
                    return inner
    return None


def open_plain(path: Path, mode: str, **options: Any) -> IO[Any]:
    """Open a file for writing; `mode` and `options` are those of `open`.

    Raises:
        ValueError: the path is a link, a folder, a device or a pipe.
    """
    fault = f"{path} is a link, or no plain file, and is not written to. Move it away, or put the file there."
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise ValueError(fault)
    try:
        return open(path, mode, opener=_open_no_link, **options)
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link since the check
            raise ValueError(fault) from error
        raise


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)
