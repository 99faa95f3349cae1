"""Codecs of zarr that check a chunk before they decode it; importing this module registers them.

A chunk of texts begins with their number. numcodecs allocates 8 bytes for each before it reads them, so a
damaged number asks for up to 32 GiB. The header of a Blosc chunk states its length. Blosc reads that many
bytes, also beyond the end of a truncated chunk, which ends the process or gives wrong values.
"""

from typing import Any

import numcodecs.registry
import zarr
from numcodecs.blosc import Blosc
from numcodecs.vlen import VLenBytes, VLenUTF8
from zarr import codecs
from zarr.registry import register_codec

_NUMBER_BYTES = 4
_BLOSC_HEADER_BYTES = 16


def _check_count(chunk: Any) -> None:
    """Check that a chunk is long enough for the length of each text."""
    raw = memoryview(chunk).cast("B")
    count = int.from_bytes(raw[:_NUMBER_BYTES], "little")
    if len(raw) < (count + 1) * _NUMBER_BYTES:
        raise ValueError(f"a chunk of {len(raw)} bytes claims to hold {count} texts")


def _check_length(chunk: Any) -> None:
    """Check that a chunk has the length that its Blosc header states."""
    raw = memoryview(chunk).cast("B")
    stated = max(int.from_bytes(raw[12:_BLOSC_HEADER_BYTES], "little"), _BLOSC_HEADER_BYTES)
    if len(raw) < stated:
        raise ValueError(f"a Blosc chunk has only {len(raw)} of {stated} bytes")


class BoundedUTF8(VLenUTF8):  # type: ignore[misc]
    """Codec of zarr v2's texts."""

    def decode(self, buf: Any, out: Any = None) -> Any:
        """Decode a chunk."""
        _check_count(buf)
        return super().decode(buf, out)


class BoundedBytes(VLenBytes):  # type: ignore[misc]
    """Codec of zarr v2's byte strings."""

    def decode(self, buf: Any, out: Any = None) -> Any:
        """Decode a chunk."""
        _check_count(buf)
        return super().decode(buf, out)


class CheckedBlosc(Blosc):  # type: ignore[misc]
    """Codec of zarr v2's Blosc chunks."""

    def decode(self, buf: Any, out: Any = None) -> Any:
        """Decode a chunk."""
        _check_length(buf)
        return super().decode(buf, out)


class VLenUTF8Codec(codecs.VLenUTF8Codec):
    """Codec of zarr v3's texts. zarr checks the name of its class."""

    async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        _check_count(chunk_bytes.as_array_like())
        return await super()._decode_single(chunk_bytes, chunk_spec)


class VLenBytesCodec(codecs.VLenBytesCodec):
    """Codec of zarr v3's byte strings."""

    async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        _check_count(chunk_bytes.as_array_like())
        return await super()._decode_single(chunk_bytes, chunk_spec)


class BloscCodec(codecs.BloscCodec):
    """Codec of zarr v3's Blosc chunks."""

    async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        _check_length(chunk_bytes.as_array_like())
        return await super()._decode_single(chunk_bytes, chunk_spec)


for _codec in (BoundedUTF8, BoundedBytes, CheckedBlosc):
    numcodecs.registry.register_codec(_codec)
for _name, _class in (
    ("vlen-utf8", VLenUTF8Codec),
    ("vlen-bytes", VLenBytesCodec),
    ("blosc", BloscCodec),
):
    register_codec(_name, _class)
    zarr.config.set({f"codecs.{_name}": f"{_class.__module__}.{_class.__qualname__}"})
