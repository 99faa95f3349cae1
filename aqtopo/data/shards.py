"""Reader of the hourly fields in the shards of a store, and deadlines of reads.

A shard is a file of the zarr v3 specification's sharding codec: the chunks of a day, each followed by its
CRC-32C, and at the end an index of their offsets and lengths with its own CRC-32C. The chunks are not
compressed, so an hour takes one `preadv` into the returned array and one checksum: 0.2 ms for 11 fields of
128 x 256. zarr (3.1.6, one thread) takes 3.4 ms for the same hour, most of it for asynchronous code and
copies. `benchmarks/loader.py` measures both.

Shapes: n hours, C channels, H x W grid.
"""

import hashlib
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import google_crc32c
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ShardingCodecIndexLocation
from zarr.dtype import Float32

from aqtopo.data import zarr_codecs  # noqa: F401  (checks chunks)
from aqtopo.data.schema import HOURS_PER_SHARD
from aqtopo.refusal import READ_ERRORS
from aqtopo.variables import READ_DEADLINE_S

CHECKSUMS = "shard_blake2b"
"""Name of the array of the shards' checksums, (shard,) uint64."""

_CRC_BYTES = 4
_INDEX_BYTES = HOURS_PER_SHARD * 16 + _CRC_BYTES
_NO_CHUNK = 2**64 - 1
_PIECE_BYTES = 2**22
_OPEN_SHARDS = 64
"""Most open shards of a process: a rank of 400 with several loader processes must stay below 1024 files."""


Result = TypeVar("Result")


class DamagedShardError(Exception):
    """Error of a damaged or missing shard; the text completes "the shard <path> ..."."""


def shard_path(store: str | Path, time_index: int) -> Path:
    """Return the file of an hour."""
    return Path(store, "fields", "c", str(time_index // HOURS_PER_SHARD), "0", "0", "0")


def field_reader(store: str) -> "PlainShards | ZarrFields":
    """Return the reader for the encoding of a store's fields."""
    array = zarr.open_group(store, mode="r")["fields"]
    assert isinstance(array, zarr.Array)
    metadata: Any = array.metadata
    hour: tuple[int, ...] = array.shape[1:]
    codecs: Any = getattr(metadata, "codecs", ())
    checksummed = (BytesCodec(endian="little"), Crc32cCodec())
    plain = (
        [type(codec) for codec in codecs] == [ShardingCodec]
        and codecs[0].codecs == codecs[0].index_codecs == checksummed
        and codecs[0].index_location is ShardingCodecIndexLocation.end
        and metadata.data_type == Float32()
        and metadata.encode_chunk_key((0, 0, 0, 0)) == "c/0/0/0/0"
        and array.shards == (HOURS_PER_SHARD, *hour)
        and array.chunks == (1, *hour)
    )
    return PlainShards(store, hour) if plain else ZarrFields(store, array)


class PlainShards:
    """Reader of uncompressed shards, directly from their files; `hour` is the shape (C, H, W) of an hour."""

    def __init__(self, store: str, hour: tuple[int, ...]) -> None:
        self._store = store
        self._hour = hour
        self._bytes = int(np.prod(hour)) * 4
        self._open: OrderedDict[int, tuple[int, tuple[int, ...]]] = OrderedDict()

    def read(self, first: int, last: int) -> NDArray[np.float32]:
        """Return the hours [first, last) of one shard, (n, C, H, W) float32.

        Raises:
            DamagedShardError: the shard is damaged, unreadable or missing.
        """
        values = np.empty((last - first, *self._hour), dtype="<f4")
        try:
            file, index = self._shard(first // HOURS_PER_SHARD)
            for row, hour in zip(values, range(first, last), strict=True):
                place = hour % HOURS_PER_SHARD
                self._read_chunk(file, index[2 * place], index[2 * place + 1], row)
        except FileNotFoundError as error:
            raise DamagedShardError("is missing") from error
        except OSError as error:
            raise DamagedShardError(f"cannot be read ({error})") from error
        return values

    def _read_chunk(self, file: int, offset: int, length: int, into: NDArray[np.float32]) -> None:
        if offset == _NO_CHUNK:
            raise DamagedShardError("does not contain that hour")
        if length != self._bytes + _CRC_BYTES:
            raise DamagedShardError(
                f"has {length} bytes for the hour in its index, not {self._bytes + _CRC_BYTES}"
            )
        stored = bytearray(_CRC_BYTES)
        raw = into.reshape(-1).view(np.uint8)
        if _read_fully(file, raw.data, stored, offset) != length:
            raise DamagedShardError("is truncated")
        if google_crc32c.value(raw) != int.from_bytes(stored, "little"):
            raise DamagedShardError("has a wrong checksum: its bytes have changed since it was written")

    def _shard(self, number: int) -> tuple[int, tuple[int, ...]]:
        """Return file descriptor and index (offset, length of each hour) of a shard, from an LRU cache."""
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        file = os.open(shard_path(self._store, number * HOURS_PER_SHARD), os.O_RDONLY | os.O_CLOEXEC)
        try:
            index = _read_index(file)
        except (OSError, DamagedShardError):
            os.close(file)
            raise
        self._open[number] = file, index
        if len(self._open) > _OPEN_SHARDS:
            os.close(self._open.popitem(last=False)[1][0])
        return file, index

    def __del__(self) -> None:
        for file, _ in self._open.values():
            os.close(file)


def _read_fully(file: int, chunk: memoryview, checksum: bytearray, offset: int) -> int:
    """Fill both buffers from an offset of a file; return the bytes read, fewer only at its end."""
    done, wanted = 0, len(chunk) + len(checksum)
    while done < wanted:
        if done < len(chunk):
            got = os.preadv(file, [chunk[done:], checksum], offset + done)
        else:
            got = os.preadv(file, [memoryview(checksum)[done - len(chunk) :]], offset + done)
        if not got:
            break
        done += got
    return done


def _read_index(file: int) -> tuple[int, ...]:
    size = os.fstat(file).st_size
    raw = os.pread(file, _INDEX_BYTES, size - _INDEX_BYTES) if size >= _INDEX_BYTES else b""
    if len(raw) < _INDEX_BYTES or google_crc32c.value(raw[:-_CRC_BYTES]) != int.from_bytes(
        raw[-_CRC_BYTES:], "little"
    ):
        raise DamagedShardError("has no valid index at its end: it is truncated or was changed")
    return struct.unpack(f"<{2 * HOURS_PER_SHARD}Q", raw[:-_CRC_BYTES])


class ZarrFields:
    """Reader of any other encoding, through zarr."""

    def __init__(self, store: str, array: Any) -> None:
        self._store = store
        self._array = array

    def read(self, first: int, last: int) -> NDArray[np.float32]:
        """Read as `PlainShards.read` does."""
        # zarr returns the fill value if a file is missing; `write_store` stores empty hours too.
        if not all(map(Path.exists, self._files(first, last))):
            raise DamagedShardError("is missing")
        try:
            values = np.asarray(self._array[first:last], dtype=np.float32)
        except READ_ERRORS as error:
            raise DamagedShardError(f"cannot be read ({type(error).__name__}: {error})") from error
        return values

    def _files(self, first: int, last: int) -> list[Path]:
        """Return the files of the hours [first, last)."""
        hours, *sizes = self._array.shards or self._array.chunks
        rest = [range(-(-length // size)) for length, size in zip(self._array.shape[1:], sizes, strict=True)]
        places = product(range(first // hours, (last - 1) // hours + 1), *rest)
        return [Path(self._store, "fields", self._array.metadata.encode_chunk_key(p)) for p in places]


def shard_checksum(store: str | Path, number: int) -> int:
    """Return the first 64 bits of BLAKE2b of a shard's file.

    A CRC-32C of the file would be equal for all shards: each chunk is followed by its own CRC-32C, which
    resets the register to a constant.

    Raises:
        DamagedShardError: the shard is missing or cannot be read.
    """
    return checksum_of(shard_bytes(store, number))


def checksum_of(pieces: Iterable[bytes]) -> int:
    """Return the checksum of a shard's bytes, see `shard_checksum`."""
    digest = hashlib.blake2b(digest_size=8)
    for piece in pieces:
        digest.update(piece)
    return int.from_bytes(digest.digest(), "little")


def shard_bytes(store: str | Path, number: int) -> Iterator[bytes]:
    """Yield a shard's file in pieces.

    Raises:
        DamagedShardError: the shard is missing or cannot be read.
    """
    try:
        with shard_path(store, number * HOURS_PER_SHARD).open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                yield piece
    except FileNotFoundError as error:
        raise DamagedShardError("is missing") from error
    except OSError as error:
        raise DamagedShardError(f"cannot be read ({error})") from error


def stored_checksums(store: str | Path) -> NDArray[np.uint64]:
    """Return the checksums of all shards from the time of writing, (shard,); empty if the store has none."""
    group = zarr.open_group(store, mode="r")
    if CHECKSUMS not in group:
        return np.empty(0, np.uint64)
    return np.asarray(group[CHECKSUMS][:], dtype=np.uint64)  # type: ignore[index]


def run_with_deadline(deadline_s: float, work: Callable[[], Result]) -> Result:
    """Call a function in a daemon thread, which is abandoned at the deadline.

    Raises:
        TimeoutError: it took longer than `deadline_s`.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001  (raised again in the calling thread)
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(deadline_s)


def read_with_deadline(
    store: object, what: str, read: Callable[[], Result], deadline_s: float = READ_DEADLINE_S
) -> Result:
    """Call a function that reads `what` from a store, with a deadline [s].

    Raises:
        TimeoutError: it took longer; the message names `store` and `what`.
    """
    try:
        return run_with_deadline(deadline_s, read)
    except TimeoutError:
        raise TimeoutError(
            f"The data store {store} did not answer for {deadline_s:g} s: {what} is still not read. Check "
            "whether the file system hangs. If it is only slow, raise `data.read_deadline_s` of the run, "
            "or give `aqtopo data` a longer `--deadline`."
        ) from None
