"""Damaged chunks are refused before they take memory or end the process; unpickling stays off."""

import json
import pickle
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.dtype import VariableLengthBytes, VariableLengthUTF8

import aqtopo.data.zarr_codecs  # noqa: F401
from aqtopo.data.outside import open_outside
from tests.data.outside_files import make_hours


@pytest.mark.filterwarnings("ignore:The data type")
@pytest.mark.parametrize("empty", ["", b""], ids=["texts", "bytes"])
@pytest.mark.parametrize("version", [2, 3])
def test_a_damaged_number_of_texts_is_refused(tmp_path: Path, version: Any, empty: Any) -> None:
    dtype: Any = VariableLengthUTF8() if empty == "" else VariableLengthBytes()
    array = zarr.create_array(
        tmp_path / "names", shape=2, dtype=dtype, zarr_format=version, compressors=None, fill_value=empty
    )
    array[:] = np.array(["one", "two"] if empty == "" else [b"one", b"two"], dtype=object)
    assert len(zarr.open_array(tmp_path / "names", mode="r")[:]) == 2
    chunk = tmp_path / "names" / ("c/0" if version == 3 else "0")
    chunk.write_bytes((2**20).to_bytes(4, "little") + chunk.read_bytes()[4:])
    with pytest.raises(ValueError, match="a chunk of 18 bytes declares 1048576 texts"):
        zarr.open_array(tmp_path / "names", mode="r")[:]


@pytest.mark.parametrize("left", [10, 50_000])
@pytest.mark.parametrize("version", [2, 3])
def test_a_truncated_chunk_of_blosc_is_refused(tmp_path: Path, version: Any, left: int) -> None:
    compressor = numcodecs.Blosc() if version == 2 else zarr.codecs.BloscCodec()
    values = np.random.default_rng(0).random(10_000)
    zarr.create_array(
        tmp_path / "a", data=values, chunks=values.shape, zarr_format=version, compressors=compressor
    )
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "a", mode="r")[:], values)
    chunk = tmp_path / "a" / ("c/0" if version == 3 else "0")
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:left])
    with pytest.raises(ValueError, match=rf"a Blosc chunk has only {left} of \d+ bytes"):
        zarr.open_array(tmp_path / "a", mode="r")[:]


COMPRESSORS = [
    *(("2", codec) for codec in (numcodecs.Zstd(), numcodecs.GZip(), numcodecs.Zlib(), numcodecs.LZ4())),
    *(("2", codec) for codec in (numcodecs.BZ2(), numcodecs.Blosc("zstd"))),
    *(("3", codec) for codec in (zarr.codecs.ZstdCodec(), zarr.codecs.GzipCodec(), zarr.codecs.BloscCodec())),
]


@pytest.mark.parametrize(
    ("version", "compressor"), COMPRESSORS, ids=lambda v: v if isinstance(v, str) else type(v).__name__
)
def test_a_chunk_that_decodes_to_more_than_its_array_is_refused(
    tmp_path: Path, version: str, compressor: Any
) -> None:
    form: Any = int(version)
    for name, size in (("small", 1000), ("large", 20_000_000)):
        values = np.arange(size, dtype="f4") if name == "small" else np.zeros(size, "f4")
        array = zarr.create_array(
            tmp_path / name,
            shape=size,
            chunks=(size,),
            dtype="f4",
            zarr_format=form,
            compressors=compressor,
            config={"write_empty_chunks": True},
        )
        array[:] = values
        np.testing.assert_array_equal(zarr.open_array(tmp_path / name, mode="r")[:], values)
    chunk = "c/0" if version == "3" else "0"
    (tmp_path / "large" / chunk).replace(tmp_path / "small" / chunk)
    with pytest.raises(ValueError, match=r"a chunk decodes to \d+ bytes or more"):
        zarr.open_array(tmp_path / "small", mode="r")[:]


class Payload:
    """Object whose unpickling writes a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return Path.touch, (self.proof,)


def test_a_store_with_a_pickle_is_refused(tmp_path: Path) -> None:
    make_hours().to_zarr(tmp_path / "h.zarr", zarr_format=2, consolidated=False)
    metadata = tmp_path / "h.zarr" / "lat" / ".zarray"
    filters = [{"id": "vlen-utf8"}, {"id": "pickle", "protocol": 5}]
    changes = {"compressor": None, "dtype": "|O", "fill_value": "", "filters": filters}
    metadata.write_text(
        json.dumps(json.loads(metadata.read_text(encoding="utf-8")) | changes), encoding="utf-8"
    )
    metadata.with_name("0").write_bytes(pickle.dumps(Payload(tmp_path / "proof")))
    with pytest.raises(ValueError, match=r"h\.zarr is a damaged zarr store"):
        open_outside(tmp_path / "h.zarr")
    assert not (tmp_path / "proof").exists()
