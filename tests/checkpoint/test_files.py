"""Checks of all bits of files, shared by many ranks."""

import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from aqtopo.checkpoint import files
from aqtopo.checkpoint.files import FileRecord, check_files, describe_file, write_durably, write_tensors
from aqtopo.distributed.process_group import SINGLE_RANK, SingleRank, shard, shard_by_size
from aqtopo.refusal import RefusedError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(files, "BLOCK_BYTES", 10)
    (tmp_path / "long").write_bytes(bytes(range(95)))
    (tmp_path / "short").write_bytes(b"abc")
    (tmp_path / "empty").write_bytes(b"")
    return tmp_path


def records(folder: Path) -> dict[str, FileRecord]:
    return {path.name: describe_file(path) for path in folder.iterdir()}


def test_unchanged_files_pass(folder: Path) -> None:
    known = records(folder)
    assert len(known["long"].sha256) == 10
    check_files(folder, known, SINGLE_RANK)


@pytest.mark.parametrize("place", range(0, 95, 7))
def test_flipped_bit_is_found_and_located(folder: Path, place: int) -> None:
    known = records(folder)
    data = bytearray((folder / "long").read_bytes())
    data[place] ^= 1 << (place % 8)
    (folder / "long").write_bytes(data)
    block = place // 10 * 10
    with pytest.raises(RefusedError, match=f"long: bytes {block} to {block + 10} have changed"):
        check_files(folder, known, SINGLE_RANK)


def test_missing_longer_and_shorter_files_are_named_together(folder: Path) -> None:
    known = records(folder)
    (folder / "short").unlink()
    (folder / "long").write_bytes(b"x")
    (folder / "empty").write_bytes(b"x")
    with pytest.raises(RefusedError) as refusal:
        check_files(folder, known, SINGLE_RANK)
    for text in ("short: missing", "long: 1 bytes instead of 95", "empty: 1 bytes instead of 0"):
        assert text in str(refusal.value)


@dataclass(frozen=True)
class Counting(SingleRank):
    """One of many ranks that hears nothing from the others."""


def test_ranks_together_hash_every_block_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = records(folder)
    read: list[int] = []
    monkeypatch.setattr(files, "_hash", lambda data: read.append(len(data)) or "")
    for rank in range(400):
        before = sum(read)
        with suppress(RefusedError):  # whoever read something found another hash
            check_files(folder, known, Counting(rank, 400))
        assert sum(read) - before <= 98 / 400 + files.BLOCK_BYTES
    assert sum(read) == 98


@given(st.lists(st.integers(1, 20), max_size=50), st.integers(1, 60))
def test_shards_by_size_cover_all_items_in_order_and_are_balanced_to_within_one_item(
    sizes: list[int], world: int
) -> None:
    items = list(enumerate(sizes))
    parts = [shard_by_size(items, sizes, Counting(rank, world)) for rank in range(world)]
    assert [item for part in parts for item in part] == items
    for part in parts:
        assert sum(size for _, size in part) <= sum(sizes) / world + max(sizes, default=0)


@given(st.integers(0, 50), st.integers(1, 60))
def test_shards_cover_all_items_in_order(items: int, world: int) -> None:
    parts = [list(shard(range(items), Counting(rank, world))) for rank in range(world)]
    assert [item for part in parts for item in part] == list(range(items))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_tensor_files_have_the_access_rights_of_other_new_files(tmp_path: Path) -> None:
    (tmp_path / "any").touch()
    write_tensors(tmp_path / "weights", {"x": torch.ones(2)}, {"of": "a model"})
    assert (tmp_path / "weights").stat().st_mode == (tmp_path / "any").stat().st_mode
    assert load_file(tmp_path / "weights")["x"].tolist() == [1.0, 1.0]


def test_small_file_is_replaced_atomically(tmp_path: Path) -> None:
    write_durably(tmp_path / "latest", "one\n")
    write_durably(tmp_path / "latest", "two\n")
    assert (tmp_path / "latest").read_text(encoding="utf-8") == "two\n"
    assert [path.name for path in tmp_path.iterdir()] == ["latest"]


def test_text_is_utf_8_in_every_locale(tmp_path: Path) -> None:
    """A batch job's environment may name no language.

    The locale is set after the start. With LC_ALL=C, Python does not start in a folder with a non-ASCII name,
    because site.py reads the editable installation's .pth file in the locale's encoding.
    """
    code = """
import locale, pathlib, sys
from aqtopo.checkpoint.files import write_durably
locale.setlocale(locale.LC_ALL, "C")
assert locale.getencoding() != "utf-8"
write_durably(pathlib.Path(sys.argv[1]), chr(252))
"""
    plain = {"PYTHONUTF8": "0"}
    command = [sys.executable, "-c", code, str(tmp_path / "file")]
    ended = subprocess.run(command, env=os.environ | plain, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "file").read_bytes() == "ü".encode()


def test_tensors_on_a_full_disk_are_named_with_their_file(full_disk: Path) -> None:
    with pytest.raises(OSError, match=r"a\.safetensors cannot be written \(.*No space left on device"):
        write_tensors(full_disk / "a.safetensors", {"a": torch.zeros(1000)})
