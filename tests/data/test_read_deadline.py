import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aqtopo.config import RunConfig
from aqtopo.data import Store, open_store
from aqtopo.data.inspection import inspect_store
from aqtopo.data.shards import run_with_deadline
from aqtopo.data.statistics import compute_statistics
from aqtopo.evaluation.baselines import fit_climatology, persistence
from aqtopo.training.validation import probe_batch

SHARD = Path("fields", "c", "3", "0", "0", "0")
"""The shard of 2016-01-04, which holds the probe batch."""


@pytest.fixture
def stall(damaged: Path) -> Iterator[Callable[[Path], None]]:
    """Function that replaces a file of the store by a FIFO, so that reading it blocks until the test ends."""
    stalled: list[Path] = []

    def make(path: Path) -> None:
        (damaged / path).unlink()
        os.mkfifo(damaged / path)  # opening a FIFO for reading blocks until it has a writer
        stalled.append(damaged / path)

    yield make
    for path in stalled:
        os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))  # releases the threads that wait for it


def test_result_or_error_before_the_deadline_is_passed_on() -> None:
    assert run_with_deadline(5, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        run_with_deadline(5, lambda: 1 // 0)


def test_call_is_abandoned_at_the_deadline() -> None:
    over = threading.Event()
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        run_with_deadline(0.05, over.wait)
    assert time.monotonic() - began < 5
    over.set()


@pytest.mark.parametrize(
    "read",
    [
        lambda store, _config: compute_statistics(store, [2016]),
        lambda store, _config: fit_climatology(store, ("pm25",), [2016]),
        lambda store, _config: persistence(store, ("pm25",), store.times[72:73], 1),
        probe_batch,
        lambda store, _config: inspect_store(store.path, deadline_s=store.deadline_s),
    ],
    ids=["statistics", "climatology", "persistence", "probe", "inspection"],
)
def test_read_of_a_blocked_shard_ends_at_the_deadline(
    damaged: Path,
    stall: Callable[[Path], None],
    tiny_config: Callable[..., RunConfig],
    read: Callable[[Store, RunConfig], Any],
) -> None:
    store = open_store(damaged, deadline_s=0.5)
    stall(SHARD)
    with pytest.raises(TimeoutError, match=rf"did not answer for 0\.5 s: the shard {SHARD}") as caught:
        read(store, tiny_config(data={"store": str(damaged)}))
    assert str(damaged) in str(caught.value)


def test_opening_ends_at_the_deadline_if_metadata_block(damaged: Path, stall: Callable[[Path], None]) -> None:
    stall(Path("static", "zarr.json"))
    with pytest.raises(TimeoutError, match=r"did not answer for 0\.5 s: its metadata is still not read"):
        open_store(damaged, deadline_s=0.5)
