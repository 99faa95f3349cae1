import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from aqtopo.config import RunConfig
from aqtopo.data import open_store
from aqtopo.data.loader import TrainingLoader
from aqtopo.data.workers import SlotPool

TinyConfig = Callable[..., RunConfig]


def write(pool: SlotPool, slot: int, value: int) -> None:
    pool.buffer(slot)[:] = value


def test_slots_are_apart_and_aligned() -> None:
    pool = SlotPool(3, 100)
    for slot in range(3):
        write(pool, slot, slot + 1)
    for slot in range(3):
        buffer = pool.buffer(slot)
        assert buffer.size >= 100
        assert buffer.ctypes.data % 4096 == 0
        assert (buffer == slot + 1).all()


def test_a_pool_without_a_free_slot_gives_none() -> None:
    pool = SlotPool(2, 100)
    assert [pool.reserve(), pool.reserve(), pool.reserve()] == [0, 1, None]


def test_a_slot_is_free_when_the_last_tensor_over_it_is_gone() -> None:
    pool = SlotPool(1, 100)
    slot = pool.reserve()
    assert slot == 0
    write(pool, slot, 7)
    whole = torch.from_numpy(pool.hand_over(slot))
    part = whole[10:20].view(2, 5)
    del whole
    assert pool.reserve() is None
    row = part[1].numpy()
    del part
    assert pool.reserve() is None
    assert (row == 7).all()
    del row
    assert pool.reserve() == 0


def test_reclaiming_frees_what_was_reserved_but_not_what_is_in_use() -> None:
    pool = SlotPool(2, 100)
    first = pool.reserve()
    assert first is not None
    kept = pool.hand_over(first)
    assert pool.reserve() == 1
    pool.reclaim()
    assert [pool.reserve(), pool.reserve()] == [1, None]
    assert kept.size


@pytest.mark.slow
def test_kept_batches_are_not_overwritten(tiny_store: Path, tiny_config: TinyConfig) -> None:
    store = open_store(tiny_store)
    here = TrainingLoader(store, tiny_config(), 0, 1)
    there = TrainingLoader(store, tiny_config(data={"workers": 2}), 0, 1)
    first = [batch.inputs[1] for batch in next(there.steps(0))]  # a view, of a pass that is left
    # More than the pool has slots for are held at a time, beside a view of one from the pass before.
    held = [batch for step in there.steps(1) for batch in step]
    wanted = [batch for step in here.steps(1) for batch in step]
    assert len(held) == len(wanted) == 48
    for mine, theirs in zip(wanted, held, strict=True):
        assert torch.equal(mine.inputs, theirs.inputs)
        assert torch.equal(mine.valid, theirs.valid)
    for mine, view in zip(next(here.steps(0)), first, strict=True):
        assert torch.equal(mine.inputs[1], view)


@pytest.mark.slow
def test_too_little_shared_memory_is_reported(
    tiny_store: Path, tiny_config: TinyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The width of a slot is no part of what is tested; 2**50 bytes are more than any machine shares.
    monkeypatch.setattr("aqtopo.data.batch.BatchReader.size", lambda *_: 2**50)
    with pytest.raises(ValueError, match=r"MiB of shared memory.*Lower `data\.workers`"):
        TrainingLoader(open_store(tiny_store), tiny_config(data={"workers": 1}), 0, 1)


SCRIPT = """
print("started", flush=True)
from aqtopo.config import load_config
from aqtopo.data import open_store
from aqtopo.data.loader import TrainingLoader
config = load_config("run.json")
print(len(next(TrainingLoader(open_store(config.data.store), config, 0, 1).steps(0))), "micro-batches")
"""


@pytest.mark.slow
@pytest.mark.parametrize("start", ["forkserver", "spawn"])
def test_loader_processes_do_not_run_the_script_of_the_user_again(
    tiny_config: TinyConfig, tmp_path: Path, start: str
) -> None:
    config = tiny_config(data={"workers": 2, "worker_start": start})
    (tmp_path / "run.json").write_text(config.to_json(), encoding="utf-8")
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    command = [sys.executable, "script.py"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split("\n")[0] == "started"
    assert ended.stdout.count("started") == 1
    assert "micro-batches" in ended.stdout
