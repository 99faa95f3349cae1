"""Time to read one hour at random, by shard length and encoding.

The data are a week of simulated weather at 128 x 256 with 11 channels. zarr writes them with each shard
length and encoding. They are read as `aqtopo.data.shards` reads: open the shard's file (64 stay open), read
its index, read the hour's bytes, compare their CRC-32C, and decode to float32. Every hour is checked first: a
lossless encoding must return every bit, a lossy one must stay within the stated bound, in standard
deviations.

Lossy encodings: `float16` stores (x - mean) / std as float16, with an error of at most 2^-11 of it. `rounded`
keeps 10 bits of float32's mantissa, with an error of at most 2^-11 of the value. Times are with the files in
the page cache (`ms_an_hour`) and with the file dropped from it before each read (`ms_dropped`). Sizes are
those of simulated fields; measured or assimilated fields are less smooth.
"""

import os
import shutil
import struct
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numcodecs import BitRound, Blosc, Zstd
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from aqtopo.synthetic.config import SimulationConfig
from aqtopo.synthetic.simulator import simulate
from benchmarks.measure import parse_arguments, report, time_paired

Fields = NDArray[np.float32]

GRID = 128, 256
HOURS = 168
SHARD_HOURS = (1, 6, 24, 168)
HOURS_A_YEAR = 8766
KEPT_BITS = 10
HALF_STEP = 2.0**-11
"""Largest relative error of rounding to 10 bits after the leading one, as in float16."""

TINY = 2.0**-25
"""Largest absolute error of a subnormal float16."""

READS = 24
OPEN_SHARDS = 64
CRC_BYTES = 4
CHOSEN = "none, 24 h"
"""The encoding and shard length that `aqtopo.data.write` uses."""


@dataclass(frozen=True)
class Encoding:
    """Encoding of an hour as bytes.

    Attributes:
        codecs: zarr codecs before the checksum.
        decode: function from the stored bytes to those of `dtype`.
        dtype: dtype of the stored values.
        anomaly: true if (x - mean) / std is stored.
        rounded: true if the mantissa is rounded first.
    """

    codecs: list[Any]
    decode: Callable[[Any], Any] = bytes
    dtype: str = "float32"
    anomaly: bool = False
    rounded: bool = False


ZSTD = [ZstdCodec(level=3)]
SHUFFLED = [BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle")]
ENCODINGS = {
    "none": Encoding([]),
    "zstd": Encoding(ZSTD, Zstd().decode),
    "lz4, bitshuffle": Encoding([BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle")], Blosc().decode),
    "rounded, zstd, bitshuffle": Encoding(SHUFFLED, Blosc().decode, rounded=True),
    "float16": Encoding([], dtype="float16", anomaly=True),
    "float16, zstd": Encoding(ZSTD, Zstd().decode, dtype="float16", anomaly=True),
}


class Shards:
    """Reader of hours from shards of one encoding and length."""

    def __init__(
        self, store: Path, encoding: Encoding, shard_hours: int, scale: tuple[Fields, Fields]
    ) -> None:
        self.store, self._encoding, self._hours, self._scale = store, encoding, shard_hours, scale
        self._open: OrderedDict[int, tuple[int, tuple[int, ...]]] = OrderedDict()

    def read(self, hour: int) -> Fields:
        """Return an hour, (C, H, W)."""
        file, index = self._shard(hour // self._hours)
        place = hour % self._hours
        raw = np.frombuffer(os.pread(file, index[2 * place + 1], index[2 * place]), np.uint8)
        stored, checksum = raw[:-CRC_BYTES], raw[-CRC_BYTES:]
        assert google_crc32c.value(stored) == int.from_bytes(checksum.tobytes(), "little")
        values = np.frombuffer(self._encoding.decode(stored), self._encoding.dtype).reshape(-1, *GRID)
        if not self._encoding.anomaly:
            return values.copy()
        mean, std = self._scale
        back = np.multiply(values, std, dtype=np.float32)
        back += mean
        return back

    def _shard(self, number: int) -> tuple[int, tuple[int, ...]]:
        if number not in self._open:
            file = os.open(self.store / f"fields/c/{number}/0/0/0", os.O_RDONLY)
            size = 16 * self._hours + CRC_BYTES
            raw = os.pread(file, size, os.fstat(file).st_size - size)
            assert google_crc32c.value(raw[:-CRC_BYTES]) == int.from_bytes(raw[-CRC_BYTES:], "little")
            self._open[number] = file, struct.unpack(f"<{2 * self._hours}Q", raw[:-CRC_BYTES])
            if len(self._open) > OPEN_SHARDS:
                os.close(self._open.popitem(last=False)[1][0])
        self._open.move_to_end(number)
        return self._open[number]

    def drop_cache(self) -> None:
        """Close all shards and drop them from the page cache."""
        while self._open:
            os.close(self._open.popitem()[1][0])
        for path in self.store.glob("fields/c/*/0/0/0"):
            file = os.open(path, os.O_RDONLY)
            os.fsync(file)  # dirty pages are not dropped
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)


def simulate_week() -> Fields:
    """Return simulated fields, (HOURS, C, H, W)."""
    first = next(iter(simulate(SimulationConfig(years=(2016,), grid=GRID))))
    return first["fields"].values[:HOURS]


def write(
    store: Path, fields: Fields, encoding: Encoding, shard_hours: int, scale: tuple[Fields, Fields]
) -> None:
    """Write fields with zarr, in one encoding and shard length."""
    array = zarr.create_group(store).create_array(
        "fields", shape=fields.shape, dtype=encoding.dtype, chunks=(1, *fields.shape[1:]),
        shards=(shard_hours, *fields.shape[1:]), compressors=[*encoding.codecs, Crc32cCodec()],
        fill_value=np.nan,
    )  # fmt: skip
    stored = fields
    if encoding.anomaly:
        mean, std = scale
        stored = (fields - mean) / std
    elif encoding.rounded:
        stored = BitRound(keepbits=KEPT_BITS).encode(fields).view(np.float32)
    array[:] = stored.astype(encoding.dtype)


def check_errors(
    shards: Shards, encoding: Encoding, fields: Fields, scale: tuple[Fields, Fields]
) -> tuple[float, float]:
    """Return the largest error and the largest allowed error of all hours, in standard deviations."""
    mean, std = scale
    error = bound = 0.0
    for hour, truth in enumerate(fields):
        read, z = shards.read(hour), (truth - mean) / std
        size = np.abs(z) if encoding.anomaly else np.abs(truth) / std
        # The last term is the float32 rounding error of computing (x - mean) / std and back.
        allowed = HALF_STEP * size + TINY + 2.0**-22 * (np.abs(mean) + np.abs(truth)) / std
        if not (encoding.anomaly or encoding.rounded):
            np.testing.assert_array_equal(read, truth)
            continue
        off = np.abs(read.astype(np.float64) - truth) / std
        assert (off <= allowed).all()
        error, bound = max(error, float(off.max())), max(bound, float(allowed.max()))
    return error, bound


def measure(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Rows of all encodings and shard lengths."""
    fields = simulate_week()
    mean, std = fields.mean(axis=(0, 2, 3), dtype=np.float64), fields.std(axis=(0, 2, 3), dtype=np.float64)
    scale = mean.astype(np.float32)[:, None, None], std.astype(np.float32)[:, None, None]
    rows: dict[str, dict[str, Any]] = {}
    warm: dict[str, Callable[[], None]] = {}
    readers: dict[str, Shards] = {}
    order = np.random.default_rng(0).permutation(HOURS)[:READS].tolist()
    for (name, encoding), shard_hours in product(ENCODINGS.items(), SHARD_HOURS):
        key = f"{name}, {shard_hours} h"
        store = folder / key.replace(" ", "_")
        write(store, fields, encoding, shard_hours, scale)
        shards = readers[key] = Shards(store, encoding, shard_hours, scale)
        error, bound = check_errors(shards, encoding, fields, scale)
        size = sum(file.stat().st_size for file in store.glob("fields/c/*/0/0/0"))
        rows[key] = {
            "encoding": name,
            "shard_h": shard_hours,
            "files_a_year": -(-HOURS_A_YEAR // shard_hours),
            "share_of_bytes": size / fields.nbytes,
            "largest_error_std": error,
            "bound_std": bound,
        }
        warm[key] = lambda shards=shards: [shards.read(hour) for hour in order] and None
    timed = time_paired(warm, rounds)
    for key, row in rows.items():
        row["ms_an_hour"] = timed.median(key) / READS * 1e3
        row["of_chosen"] = timed.ratio(key, CHOSEN)
    cold = time_paired(warm, rounds, before={key: shards.drop_cache for key, shards in readers.items()})
    for key, row in rows.items():
        row["ms_dropped"] = cold.median(key) / READS * 1e3
    return list(rows.values())


def main() -> None:
    """Print the figures."""
    options = parse_arguments(__doc__)
    folder = Path(tempfile.mkdtemp(prefix="aqtopo_encodings_"))
    global GRID
    if options.quick:
        GRID = 16, 32
    try:
        report("encodings", measure(folder, 2 if options.quick else 5), options)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
