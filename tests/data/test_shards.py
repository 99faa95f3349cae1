import gc
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import ZstdCodec

from aqtopo.data import open_store
from aqtopo.data.shards import PlainShards, ZarrFields, field_reader


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
        {"chunks": (1, 11, 8, 16), "shards": (24, 11, 8, 16), "compressors": [ZstdCodec(checksum=True)]},
        {"chunks": (1, 11, 8, 16), "compressors": None},
        {"chunks": (12, 11, 4, 16), "shards": (24, 11, 8, 16), "compressors": None},
    ],
    ids=["compressed", "no shards", "other chunks"],
)
def test_other_encodings_are_read_through_zarr(damaged: Path, encoding: dict[str, object]) -> None:
    before = open_store(damaged).read_span(24, 48)
    rewrite(damaged, **encoding)
    assert isinstance(field_reader(str(damaged)), ZarrFields)
    np.testing.assert_array_equal(open_store(damaged).read_span(24, 48), before)


def test_a_flipped_byte_in_a_compressed_store_is_found_too(damaged: Path) -> None:
    rewrite(damaged, chunks=(1, 11, 8, 16), shards=(24, 11, 8, 16), compressors=[ZstdCodec(checksum=True)])
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
