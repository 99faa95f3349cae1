import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aqtopo.config import RunConfig
from aqtopo.data import open_store
from aqtopo.data.stage import NodeCopy, needed_shards
from aqtopo.refusal import UnreadableDataError

TinyConfig = Callable[..., RunConfig]

SHARDS = [*range(20)]
"""Days of 2016 and 2017: training and validation reach into every one of them, and into none of 2018."""


@pytest.fixture
def staging(tiny_config: TinyConfig, damaged: Path, tmp_path: Path) -> RunConfig:
    """A run on a store of its own, staged to a folder of the test's."""
    (tmp_path / "node").mkdir()
    return tiny_config(data={"store": str(damaged), "stage": str(tmp_path / "node"), "read_deadline_s": 20})


def node_copy(config: RunConfig) -> NodeCopy:
    return NodeCopy(open_store(config.data.store), config)


def shard(folder: str | Path, number: int) -> Path:
    return Path(folder, "fields", "c", str(number), "0", "0", "0")


def test_a_copy_holds_what_is_read_and_is_read_instead_of_the_store(staging: RunConfig) -> None:
    store = open_store(staging.data.store)
    assert needed_shards(store, staging).tolist() == SHARDS
    before = store.read(30)
    copy = node_copy(staging)
    made = copy.make()
    assert (made.shards, made.copied) == (20, 20)
    assert made.total_bytes == sum(shard(store.path, number).stat().st_size for number in SHARDS)
    staged = replace(store, copy=made.folder)
    shutil.rmtree(Path(store.path, "fields"))
    np.testing.assert_array_equal(staged.read(30), before)
    with pytest.raises(ValueError, match=r"2018-01-01T00: the shard fields/c/20/0/0/0 of its copy .*is gone"):
        staged.read(480)
    copy.leave()
    assert not Path(made.folder).exists()


def test_the_last_rank_that_leaves_removes_the_copy(staging: RunConfig) -> None:
    first, second = node_copy(staging), node_copy(staging)
    made = first.make()
    second.join()
    first.leave()
    assert shard(made.folder, 3).exists()
    second.leave()
    assert not Path(made.folder).exists()


def test_a_second_run_takes_what_is_there_after_reading_all_of_it(staging: RunConfig) -> None:
    first, second = node_copy(staging), node_copy(staging)
    first.make()
    assert second.make().copied == 0
    first.leave()
    second.leave()


def test_a_damaged_copy_that_another_run_uses_is_neither_read_nor_changed(staging: RunConfig) -> None:
    first = node_copy(staging)
    made = first.make()
    shard(made.folder, 4).write_bytes(b"cut short")
    with pytest.raises(
        ValueError, match=r"that another run uses, and whose shard fields/c/4/0/0/0 is damaged"
    ):
        node_copy(staging).make()
    assert shard(made.folder, 4).read_bytes() == b"cut short"
    first.leave()


def test_what_a_killed_copy_left_is_completed_and_never_taken_for_whole(staging: RunConfig) -> None:
    copy = node_copy(staging)
    made = copy.make()
    assert copy._held is not None
    os.close(copy._held)  # as if killed: nobody holds it, nothing is removed
    copy._held = None
    shard(made.folder, 2).write_bytes(shard(made.folder, 2).read_bytes()[:-9])
    flipped = bytearray(shard(made.folder, 5).read_bytes())
    flipped[300] ^= 1
    shard(made.folder, 5).write_bytes(flipped)
    shard(made.folder, 7).unlink()
    half = shard(made.folder, 7).with_name("0.123.tmp")
    half.write_bytes(b"half")
    again = node_copy(staging)
    assert again.make().copied == 3
    assert not half.exists()
    for number in (2, 5, 7):
        assert shard(made.folder, number).read_bytes() == shard(staging.data.store, number).read_bytes()
    again.leave()


COPY_SLOWLY = """
import sys, time
from aqtopo.config import load_config
from aqtopo.data import open_store
from aqtopo.data.stage import NodeCopy
copy_now = NodeCopy._copy_now
def slowly(self, shard):
    copy_now(self, shard)
    time.sleep(float(sys.argv[2]))
NodeCopy._copy_now = slowly
config = load_config(sys.argv[1], [])
copy = NodeCopy(open_store(config.data.store), config)
print(copy.make().copied, flush=True)
"""


def start(config: RunConfig, folder: Path, seconds: float) -> subprocess.Popen[str]:
    path = folder / "config.json"
    path.write_text(config.to_json())
    command = [sys.executable, "-c", COPY_SLOWLY, str(path), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_run_waits_for_the_one_that_copies_and_goes_on_where_it_is_killed(
    staging: RunConfig, tmp_path: Path
) -> None:
    copy = node_copy(staging)
    process = start(staging, tmp_path, 2.0)
    while len(list(copy.folder.glob("fields/c/*/0/0/0"))) < 8:
        assert process.poll() is None
        time.sleep(0.01)
    # The other copies for six seconds; this one sees that and waits, until the other is killed.
    killer = subprocess.Popen(["sh", "-c", f"sleep 1; kill -{signal.SIGKILL.value} {process.pid}"])
    began = time.monotonic()
    made = copy.make()
    assert time.monotonic() - began > 0.9
    assert process.wait() == -signal.SIGKILL
    assert killer.wait() == 0
    assert 0 < made.copied < 20
    for number in SHARDS:
        assert shard(made.folder, number).read_bytes() == shard(staging.data.store, number).read_bytes()
    copy.leave()


def test_leftovers_of_other_data_are_removed_and_copies_in_use_are_not(
    staging: RunConfig, tiny_config: TinyConfig
) -> None:
    used = node_copy(staging)
    made = used.make()
    left = Path(made.folder).with_name("0123456789abcdef")
    left.mkdir()
    (left / "zarr.json").write_text("{}")
    data = {"store": staging.data.store, "stage": staging.data.stage, "horizons": [12]}
    other = node_copy(tiny_config(data=data | {"validation_stride_hours": 240}))
    assert other.make().shards < 20
    assert not left.exists()
    assert shard(made.folder, 3).exists()
    other.leave()
    used.leave()


def test_too_little_room_is_said_in_bytes_before_anything_is_copied(
    staging: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    size = sum(shard(staging.data.store, number).stat().st_size for number in SHARDS)
    with pytest.raises(ValueError, match=rf"has 1000 bytes free, and 20 shards .* need {size} bytes there"):
        node_copy(staging).make()
    assert list(Path(str(staging.data.stage)).glob("*/*")) == []


def test_room_is_seen_without_copying_and_what_is_held_is_not_counted_as_room(
    staging: RunConfig, tiny_config: TinyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage, copy = shutil.disk_usage("/"), node_copy(staging)
    size = sum(shard(staging.data.store, number).stat().st_size for number in SHARDS)
    copy.demand_room()
    assert list(Path(str(staging.data.stage)).iterdir()) == []
    data = {"store": staging.data.store, "stage": staging.data.stage, "horizons": [12]}
    other = node_copy(tiny_config(data=data | {"validation_stride_hours": 240}))
    other.make()
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=size - 1))
    with pytest.raises(ValueError, match=rf"has {size - 1} bytes free, and 20 shards .* need {size} bytes"):
        copy.demand_room()
    assert other._held is not None
    os.close(other._held)  # as if killed: nobody holds it, so a copy would remove it
    copy.demand_room()
    assert other.folder.exists()


def test_a_source_or_a_copy_that_fails_is_named(
    staging: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = shard(staging.data.store, 3)
    lost.unlink()
    lost.mkdir()  # cannot be read as a file, as if its disk failed
    with pytest.raises(
        UnreadableDataError, match=r"2016-01-04T00: the shard fields/c/3/0/0/0 cannot be read"
    ):
        node_copy(staging).make()
    lost.rmdir()
    shutil.copy(shard(staging.data.store, 2), lost)

    def full(_file: Any, _pieces: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("aqtopo.data.stage._written", full)
    with pytest.raises(OSError, match=r"node/aqtopo-\d+/\w+ on .* cannot be written .*No space left"):
        node_copy(staging).make()
    assert list(tmp_path.glob("node/*/*")) == []


def assert_refused(
    config: RunConfig, damage: Callable[[Path], Any], error: type[Exception], message: str
) -> None:
    damage(shard(config.data.store, 3))
    with pytest.raises(error, match=message) as caught:
        node_copy(config).make()
    assert config.data.store in str(caught.value)
    assert list(Path(str(config.data.stage)).glob("*/*")) == []


def test_damaged_and_lost_shards_are_named_with_their_time(staging: RunConfig) -> None:
    def flip(path: Path) -> None:
        raw = bytearray(path.read_bytes())
        raw[300] ^= 1
        path.write_bytes(raw)

    assert_refused(
        staging, flip, ValueError, "2016-01-04T00: the shard fields/c/3/0/0/0 differs from its checksum"
    )
    assert_refused(staging, Path.unlink, ValueError, "2016-01-04T00: the shard fields/c/3/0/0/0 is gone")


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


def test_unfit_folders_are_refused(staging: RunConfig, tmp_path: Path, tiny_config: TinyConfig) -> None:
    data = {"store": staging.data.store}
    with pytest.raises(ValueError, match=r"There is no folder .*nowhere on"):
        node_copy(tiny_config(data=data | {"stage": str(tmp_path / "nowhere")})).make()
    root = Path(str(staging.data.stage), f"aqtopo-{os.getuid()}")
    root.touch()
    with pytest.raises(ValueError, match=r"aqtopo-\d+ on .* cannot be made .*File exists"):
        node_copy(staging).make()
    root.unlink()
    root.mkdir()
    root.chmod(0o777)
    with pytest.raises(ValueError, match="not a folder that only this user may write to"):
        node_copy(staging).make()
    with pytest.raises(ValueError, match=r"data\.stage"):
        tiny_config(data={"stage": "relative"})
