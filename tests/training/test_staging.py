"""The copy of one node: what it holds, and what a failed one leaves."""

import errno
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aqtopo.config import RunConfig
from aqtopo.data import Store, open_store
from aqtopo.refusal import UnreadableDataError
from aqtopo.training.staging import check_stage, copy_shards, needed_shards

TinyConfig = Callable[..., RunConfig]

SHARDS = [*range(20)]
"""Days of 2016 and 2017: training and validation need each of them, and none of 2018."""


@pytest.fixture
def staging(tiny_config: TinyConfig, tiny_store: Path, tmp_path: Path) -> RunConfig:
    """A run on a store of its own, with an empty folder to stage to."""
    (tmp_path / "node").mkdir()
    store = tmp_path / "damaged.zarr"
    shutil.copytree(tiny_store, store)
    return tiny_config(data={"store": str(store), "stage": str(tmp_path / "node"), "read_deadline_s": 20})


def copy_of(config: RunConfig) -> Path:
    return Path(str(config.data.stage), "aqtopo-copy")


def copy(config: RunConfig) -> Store:
    store, folder = open_store(config.data.store), copy_of(config)
    copy_shards(store, config, folder)
    return replace(store, copy=str(folder))


def shard(folder: str | Path, number: int) -> Path:
    return Path(folder, "fields", "c", str(number), "0", "0", "0")


def assert_nothing_is_left(config: RunConfig) -> None:
    assert list(Path(str(config.data.stage)).iterdir()) == []


def test_a_copy_is_complete_private_and_read_instead_of_the_store(staging: RunConfig) -> None:
    store = open_store(staging.data.store)
    assert needed_shards(store, staging) == SHARDS
    before = store.read(30)
    copied = copy(staging)
    folder = copy_of(staging)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for number in SHARDS:
        assert shard(folder, number).read_bytes() == shard(store.path, number).read_bytes()
    shutil.rmtree(Path(store.path, "fields"))
    np.testing.assert_array_equal(copied.read(30), before)
    with pytest.raises(
        ValueError, match=r"2018-01-01T00: the shard fields/c/20/0/0/0 of its copy .*is missing"
    ):
        copied.read(480)


def test_too_little_space_is_reported_in_bytes_before_anything_is_copied(
    staging: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    size = sum(shard(staging.data.store, number).stat().st_size for number in SHARDS)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=size))
    check_stage(open_store(staging.data.store), staging)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=size - 1))
    with pytest.raises(
        ValueError, match=rf"has {size - 1} bytes free, and 20 shards .* need {size} bytes there"
    ):
        copy(staging)
    assert_nothing_is_left(staging)


def test_a_link_with_the_name_of_the_copy_is_not_followed(staging: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    partial = copy_of(staging).with_name("aqtopo-copy.partial")
    partial.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"aqtopo-copy\.partial on .* cannot be written .*File exists"):
        copy(staging)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_source_or_a_copy_that_fails_is_named(staging: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = shard(staging.data.store, 3)
    lost.unlink()
    lost.mkdir()  # cannot be read as a file, as if its disk failed
    with pytest.raises(
        UnreadableDataError, match=r"2016-01-04T00: the shard fields/c/3/0/0/0 cannot be read"
    ):
        copy(staging)
    lost.rmdir()
    shutil.copy(shard(staging.data.store, 2), lost)

    def full(_file: Any, _pieces: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("aqtopo.training.staging._written", full)
    with pytest.raises(OSError, match=r"node/aqtopo-copy\.partial on .* cannot be written .*No space left"):
        copy(staging)
    assert_nothing_is_left(staging)


def assert_refused(
    config: RunConfig, damage: Callable[[Path], Any], error: type[Exception], message: str
) -> None:
    damage(shard(config.data.store, 3))
    with pytest.raises(error, match=message) as caught:
        copy(config)
    assert config.data.store in str(caught.value)
    assert_nothing_is_left(config)


def test_damaged_and_lost_shards_are_named_with_their_time(staging: RunConfig) -> None:
    def flip(path: Path) -> None:
        raw = bytearray(path.read_bytes())
        raw[300] ^= 1
        path.write_bytes(raw)

    assert_refused(
        staging, flip, ValueError, "2016-01-04T00: the shard fields/c/3/0/0/0 differs from its checksum"
    )
    assert_refused(staging, Path.unlink, ValueError, "2016-01-04T00: the shard fields/c/3/0/0/0 is missing")


def test_a_store_that_does_not_answer_ends_at_the_deadline(
    staging: RunConfig, tiny_config: TinyConfig
) -> None:
    data = {"store": staging.data.store, "stage": staging.data.stage, "read_deadline_s": 1}
    path = shard(staging.data.store, 3)

    def stall(_path: Path) -> None:
        path.unlink()
        os.mkfifo(path)  # opening it waits for a writer, who never comes

    message = r"did not answer for 1 s: the shard fields/c/3/0/0/0 of 2016-01-04T00 is still not read"
    assert_refused(tiny_config(data=data), stall, TimeoutError, message)
    os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))  # lets the thread that waits for it go


def test_an_unfit_folder_or_store_is_refused(
    staging: RunConfig, tmp_path: Path, tiny_config: TinyConfig
) -> None:
    data = {"store": staging.data.store}
    with pytest.raises(ValueError, match=r"There is no folder .*nowhere on"):
        copy(tiny_config(data=data | {"stage": str(tmp_path / "nowhere")}))
    with pytest.raises(ValueError, match=r"data\.stage"):
        tiny_config(data={"stage": "relative"})
    shutil.rmtree(Path(staging.data.store, "shard_blake2b"))
    with pytest.raises(ValueError, match="has no checksums, so a copy of it cannot be verified"):
        copy(staging)
    assert_nothing_is_left(staging)
