"""Codecs of zarr that check a chunk before they decode it; importing this module registers them.

A chunk of texts begins with their number. numcodecs allocates 8 bytes for each before it reads them, so a
damaged number asks for up to 32 GiB. The header of a Blosc chunk states its length. Blosc reads that many
bytes, also beyond the end of a truncated chunk, which ends the process or gives wrong values. 45 kB of
Zstandard may hold 1.4 GB, so no chunk is decoded to much more than its array's shape and type require. Chunks
of lzma, and frames of Zstandard that state no size, are not bounded.

`Checked` codecs read the size before they decode a chunk; `Bounded` codecs, whose chunks do not state it,
stop decoding. The codecs of zarr v3 have the names of zarr's own, which zarr checks.
"""

import bz2
import functools
import gzip
import io
import math
import zlib
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any

import numcodecs.registry
import zarr
from numcodecs.blosc import Blosc
from numcodecs.bz2 import BZ2
from numcodecs.compat import ensure_bytes, ndarray_copy
from numcodecs.gzip import GZip
from numcodecs.lz4 import LZ4
from numcodecs.vlen import VLenBytes, VLenUTF8
from numcodecs.zlib import Zlib
from numcodecs.zstd import Zstd
from zarr import codecs
from zarr.core.codec_pipeline import BatchedCodecPipeline
from zarr.registry import register_codec, register_pipeline

_NUMBER_BYTES = 4
_BLOSC_HEADER_BYTES = 16
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_PIECE_BYTES = 2**20

MAX_TEXT_BYTES = 2**28
"""Largest size of a decoded chunk of texts, whose type states no size."""

_largest: ContextVar[int] = ContextVar("_largest", default=2**31)
"""Largest size of a decoded chunk of the array that is read [bytes]."""


def _check_count(chunk: Any) -> None:
    """Check that a chunk is long enough for the length of each text."""
    raw = memoryview(chunk).cast("B")
    count = int.from_bytes(raw[:_NUMBER_BYTES], "little")
    if len(raw) < (count + 1) * _NUMBER_BYTES:
        raise ValueError(f"a chunk of {len(raw)} bytes declares {count} texts")


def _check_size(size: int) -> None:
    """Check the size of a decoded chunk."""
    if size > _largest.get():
        raise ValueError(f"a chunk decodes to {size} bytes or more; its array allows {_largest.get()}")


def _read_bounded(file: gzip.GzipFile | bz2.BZ2File) -> bytes:
    content = bytearray()
    while piece := file.read(_PIECE_BYTES):
        content += piece
        _check_size(len(content))
    return bytes(content)


def _zstd_size(chunk: Any) -> int:
    """Return the decoded size in the header of a Zstandard frame (RFC 8878, 3.1.1.1); 0 if it has none."""
    raw = bytes(memoryview(chunk).cast("B")[:18])
    if len(raw) < 6 or raw[:4] != _ZSTD_MAGIC:
        return 0
    one_segment = raw[4] >> 5 & 1
    width = (one_segment, 2, 4, 8)[raw[4] >> 6]
    start = 6 - one_segment + (0, 1, 2, 4)[raw[4] & 3]
    return int.from_bytes(raw[start : start + width], "little") + (256 if width == 2 else 0)


def _check_zstd(chunk: Any) -> None:
    _check_size(_zstd_size(chunk))


def _check_lz4(chunk: Any) -> None:
    """Check the decoded size, at the start of a chunk of LZ4."""
    _check_size(int.from_bytes(memoryview(chunk).cast("B")[:_NUMBER_BYTES], "little"))


def _check_blosc(chunk: Any) -> None:
    """Check the two sizes in the header of a chunk of Blosc: its own, and that of its content."""
    raw = memoryview(chunk).cast("B")
    _check_size(int.from_bytes(raw[4:8], "little"))
    stated = max(int.from_bytes(raw[12:_BLOSC_HEADER_BYTES], "little"), _BLOSC_HEADER_BYTES)
    if len(raw) < stated:
        raise ValueError(f"a Blosc chunk has only {len(raw)} of {stated} bytes")


class _CheckedV2:
    """Base class of codecs of zarr v2 that check a chunk before they decode it."""

    check: Callable[[Any], None]
    """Raise a ValueError if the chunk must not be decoded."""

    def decode(self, buf: Any, out: Any = None) -> Any:
        """Decode a chunk."""
        self.check(buf)
        return super().decode(buf, out)  # type: ignore[misc]


class CheckedUTF8(_CheckedV2, VLenUTF8):  # type: ignore[misc]
    """Codec of texts."""

    check = staticmethod(_check_count)


class CheckedBytes(_CheckedV2, VLenBytes):  # type: ignore[misc]
    """Codec of byte strings."""

    check = staticmethod(_check_count)


class CheckedBlosc(_CheckedV2, Blosc):  # type: ignore[misc]
    """Codec of Blosc."""

    check = staticmethod(_check_blosc)


class CheckedZstd(_CheckedV2, Zstd):  # type: ignore[misc]
    """Codec of Zstandard."""

    check = staticmethod(_check_zstd)


class CheckedLZ4(_CheckedV2, LZ4):  # type: ignore[misc]
    """Codec of LZ4."""

    check = staticmethod(_check_lz4)


class BoundedGZip(GZip):  # type: ignore[misc]
    """Codec of gzip."""

    def decode(self, buf: Any, out: Any = None) -> Any:
        """Decode a chunk."""
        with gzip.GzipFile(fileobj=io.BytesIO(ensure_bytes(buf))) as file:
            return ndarray_copy(_read_bounded(file), out)


class BoundedBZ2(BZ2):  # type: ignore[misc]
    """Codec of bzip2."""

    def decode(self, buf: Any, out: Any = None) -> Any:
        """Decode a chunk."""
        with bz2.BZ2File(io.BytesIO(ensure_bytes(buf))) as file:
            return ndarray_copy(_read_bounded(file), out)


class BoundedZlib(Zlib):  # type: ignore[misc]
    """Codec of zlib."""

    def decode(self, buf: Any, out: Any = None) -> Any:
        """Decode a chunk."""
        decoder = zlib.decompressobj()
        content = decoder.decompress(ensure_bytes(buf), _largest.get() + 1)
        _check_size(len(content))
        if not decoder.eof:
            raise ValueError("a chunk of zlib is truncated")
        return ndarray_copy(content, out)


class _CheckedV3:
    """Base class of codecs of zarr v3 that check a chunk before they decode it."""

    check: Callable[[Any], None]
    """Raise a ValueError if the chunk must not be decoded."""

    async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        self.check(chunk_bytes.as_array_like())
        return await super()._decode_single(chunk_bytes, chunk_spec)  # type: ignore[misc]


class VLenUTF8Codec(_CheckedV3, codecs.VLenUTF8Codec):
    """Codec of texts."""

    check = staticmethod(_check_count)


class VLenBytesCodec(_CheckedV3, codecs.VLenBytesCodec):
    """Codec of byte strings."""

    check = staticmethod(_check_count)


class BloscCodec(_CheckedV3, codecs.BloscCodec):
    """Codec of Blosc."""

    check = staticmethod(_check_blosc)


class ZstdCodec(_CheckedV3, codecs.ZstdCodec):
    """Codec of Zstandard."""

    check = staticmethod(_check_zstd)


class GzipCodec(codecs.GzipCodec):
    """Codec of gzip."""

    @functools.cached_property
    def _gzip_codec(self) -> BoundedGZip:
        return BoundedGZip(self.level)


class BoundedPipeline(BatchedCodecPipeline):
    """Codecs of an array, in order, with the largest size of its decoded chunks."""

    async def decode_batch(self, chunk_bytes_and_specs: Iterable[tuple[Any, Any]]) -> Iterable[Any]:
        """Decode chunks."""
        chunks = list(chunk_bytes_and_specs)
        token = _largest.set(max((_bound(spec) for _, spec in chunks), default=0))
        try:
            return await super().decode_batch(chunks)
        finally:
            _largest.reset(token)


def _bound(spec: Any) -> int:
    """Return the largest size of a decoded chunk; filters of zarr v2 may hold values in wider types."""
    dtype = spec.dtype.to_native_dtype()
    texts = dtype.kind in "OT"
    return MAX_TEXT_BYTES if texts else 8 * math.prod(spec.shape) * dtype.itemsize + _PIECE_BYTES


for _codec in (
    CheckedUTF8,
    CheckedBytes,
    CheckedBlosc,
    CheckedZstd,
    CheckedLZ4,
    BoundedGZip,
    BoundedBZ2,
    BoundedZlib,
):
    numcodecs.registry.register_codec(_codec)
for _name, _class in (
    ("vlen-utf8", VLenUTF8Codec),
    ("vlen-bytes", VLenBytesCodec),
    ("blosc", BloscCodec),
    ("zstd", ZstdCodec),
    ("gzip", GzipCodec),
):
    register_codec(_name, _class)
    zarr.config.set({f"codecs.{_name}": f"{_class.__module__}.{_class.__qualname__}"})
register_pipeline(BoundedPipeline)
zarr.config.set({"codec_pipeline.path": f"{__name__}.{BoundedPipeline.__qualname__}"})
