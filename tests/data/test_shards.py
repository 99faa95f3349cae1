import gc
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec

from aqtopo.data import open_store
from aqtopo.data.inspection import inspect_store
from aqtopo.data.shards import PlainShards, ZarrFields, field_reader

DAILY: dict[str, object] = {"chunks": (1, 11, 8, 16), "shards": (24, 11, 8, 16)}


def open_files() -> int:
    """Return the number of open files of this process, after the garbage of other tests is collected."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def rewrite(store: Path, **encoding: object) -> None:
    """Rewrite the fields of a store in another encoding."""
    group = zarr.open_group(store, mode="r+")
    fields = group["fields"]
    assert isinstance(fields, zarr.Array)
    values, attributes = np.asarray(fields[:]), dict(fields.attrs)
    names = fields.metadata.dimension_names  # type: ignore[union-attr]
    shutil.rmtree(store / "fields")
    zarr.create_array(
        store / "fields",
        data=values,
        attributes=attributes,
        dimension_names=names,
        **encoding,  # type: ignore[arg-type]
    )


def test_hours_equal_those_read_by_zarr(tiny_store: Path) -> None:
    fields = zarr.open_group(tiny_store, mode="r")["fields"]
    reader = field_reader(str(tiny_store))
    assert isinstance(reader, PlainShards)
    for first, last in ((0, 24), (24, 25), (47, 48), (700, 720)):
        np.testing.assert_array_equal(reader.read(first, last), fields[first:last])  # type: ignore[index]


@pytest.mark.parametrize(
    "encoding",
    [
        DAILY | {"compressors": [ZstdCodec(checksum=True)]},
        {"chunks": (1, 11, 8, 16), "compressors": None},
        {"chunks": (12, 11, 4, 16), "shards": (24, 11, 8, 16), "compressors": None},
        DAILY | {"compressors": [Crc32cCodec()], "serializer": BytesCodec(endian="big")},
        DAILY | {"compressors": [Crc32cCodec()], "chunk_key_encoding": {"name": "default", "separator": "."}},
    ],
    ids=["compressed", "no shards", "other chunks", "big-endian", "other names"],
)
def test_other_encodings_are_read_through_zarr(damaged: Path, encoding: dict[str, object]) -> None:
    before = open_store(damaged).read_span(24, 48)
    rewrite(damaged, **encoding)
    assert isinstance(field_reader(str(damaged)), ZarrFields)
    np.testing.assert_array_equal(open_store(damaged).read_span(24, 48), before)


def test_a_flipped_byte_in_a_compressed_store_is_found_too(damaged: Path) -> None:
    rewrite(damaged, **DAILY, compressors=[ZstdCodec(checksum=True)])
    shard = damaged / "fields" / "c" / "2" / "0" / "0" / "0"
    raw = bytearray(shard.read_bytes())
    raw[300] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(ValueError, match=r"unreadable fields at 2016-01-03T00: the shard .* cannot be read"):
        open_store(damaged).read(48)


def test_number_of_open_shards_is_limited(tiny_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aqtopo.data.shards._OPEN_SHARDS", 3)
    before = open_files()
    reader = field_reader(str(tiny_store))
    for hour in range(0, 720, 24):
        reader.read(hour, hour + 1)
    assert open_files() <= before + 3
    np.testing.assert_array_equal(reader.read(0, 1)[0], open_store(tiny_store).read(0))
    del reader
    assert open_files() == before


@pytest.mark.parametrize("codec", ["codecs", "index_codecs"])
def test_a_byte_order_edited_in_the_metadata_is_not_ignored(damaged: Path, codec: str) -> None:
    described = json.loads((damaged / "fields" / "zarr.json").read_text(encoding="utf-8"))
    (found,) = (each for each in described["codecs"][0]["configuration"][codec] if each["name"] == "bytes")
    found["configuration"]["endian"] = "big"
    (damaged / "fields" / "zarr.json").write_text(json.dumps(described), encoding="utf-8")
    assert [finding for finding in inspect_store(damaged) if finding.severity == "fault"]


@pytest.mark.parametrize("chunks", [(1, 11, 8, 16), (24, 11, 4, 16)], ids=["of an hour", "of half a grid"])
def test_a_lost_file_of_any_encoding_is_named(damaged: Path, chunks: tuple[int, ...]) -> None:
    rewrite(damaged, chunks=chunks, compressors=None)
    places = ("30", "0", "0", "0") if chunks[0] == 1 else ("1", "0", "1", "0")
    Path(damaged, "fields", "c", *places).unlink()
    with pytest.raises(ValueError, match=r"unreadable fields at 2016-01-02T06: the shard .* is missing"):
        open_store(damaged).read(30)
