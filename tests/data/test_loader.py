import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from itertools import chain
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from aqtopo.config import RunConfig
from aqtopo.data import open_store, write_statistics, write_store
from aqtopo.data.batch import Batch
from aqtopo.data.loader import EvaluationLoader, TrainingLoader
from aqtopo.data.samples import PADDING

TinyConfig = Callable[..., RunConfig]
Sample = tuple[int, str, tuple[float, ...]]


def epoch(store: Path, config: RunConfig, rank: int = 0, world: int = 1, first: int = 0) -> list[list[Batch]]:
    return list(TrainingLoader(open_store(store), config, rank, world).steps(0, first))


def samples(steps: list[list[Batch]]) -> list[list[Sample]]:
    return [
        [
            (place, str(time), tuple(leads.tolist()))
            for batch in step
            for place, time, leads in zip(batch.places, batch.times, batch.lead_hours, strict=True)
            if place != PADDING
        ]
        for step in steps
    ]


def assert_same(first: Batch, second: Batch) -> None:
    for name in ("inputs", "wind", "targets", "valid", "lead_hours"):
        torch.testing.assert_close(getattr(first, name), getattr(second, name), rtol=0, atol=0)
    assert first.places == second.places
    np.testing.assert_array_equal(first.times, second.times)
    assert first.filled == second.filled


def test_an_epoch_takes_each_pair_once_in_full_steps(tiny_store: Path, tiny_config: TinyConfig) -> None:
    steps = epoch(tiny_store, tiny_config())
    assert [[batch.samples for batch in step] for step in steps] == [[2, 2]] * 24
    taken = [sample for step in samples(steps) for sample in step]
    assert [place for place, _, _ in taken] == list(range(96))
    assert len({(time, leads) for _, time, leads in taken}) == 96
    assert steps[0][0].targets.shape == (2, 1, 6, 8, 16)


def test_with_the_decoder_a_sample_is_a_time_with_all_horizons(
    tiny_store: Path, tiny_config: TinyConfig
) -> None:
    steps = epoch(tiny_store, tiny_config(model={"lead_time": "decoder"}))
    assert len(steps) == 6
    assert steps[0][0].targets.shape == (2, 4, 6, 8, 16)
    assert steps[0][0].lead_hours[0].tolist() == [12, 24, 48, 96]


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_steps_are_the_same_at_each_world_size(tiny_store: Path, tiny_config: TinyConfig, world: int) -> None:
    config = tiny_config(
        data={"time_stride_hours": 12}, training={"ranks_per_node": 3, "run_dir": "run", "epochs": 1}
    )
    reference = samples(epoch(tiny_store, config, world=1))
    ranks = [epoch(tiny_store, config, rank, world) for rank in range(world)]
    assert len({tuple(len(step) for step in steps) for steps in ranks}) == 1
    together = [sorted(chain(*step)) for step in zip(*map(samples, ranks), strict=True)]
    assert together == [sorted(step) for step in reference]
    assert [len(step) for step in together] == [12, 12, 12, 12]


def test_epoch_resumed_in_the_middle_has_the_same_steps(tiny_store: Path, tiny_config: TinyConfig) -> None:
    whole, rest = epoch(tiny_store, tiny_config()), epoch(tiny_store, tiny_config(), first=20)
    assert len(rest) == 4
    for complete, resumed in zip(whole[20:], rest, strict=True):
        for first, second in zip(complete, resumed, strict=True):
            assert_same(first, second)
    assert epoch(tiny_store, tiny_config(), first=24) == []


def test_epochs_and_seeds_have_their_own_order(tiny_store: Path, tiny_config: TinyConfig) -> None:
    store = open_store(tiny_store)

    def starts(seed: int, number: int) -> list[str]:
        config = tiny_config(training={"seed": seed})
        return [str(time) for time in next(TrainingLoader(store, config, 0, 1).steps(number))[0].times]

    orders = {tuple(starts(seed, number)) for seed in (0, 1) for number in (0, 1)}
    assert len(orders) == 4
    assert starts(1, 1) == starts(1, 1)


def test_global_random_generator_is_unchanged(tiny_store: Path, tiny_config: TinyConfig) -> None:
    before = torch.random.get_rng_state()
    epoch(tiny_store, tiny_config(data={"time_stride_hours": 24}))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("world", [1, 4])
def test_evaluation_takes_each_time_once_with_all_horizons(
    tiny_store: Path, tiny_config: TinyConfig, split: str, world: int
) -> None:
    store, config = open_store(tiny_store), tiny_config()
    ranks = [list(EvaluationLoader(store, config, split, rank, world, 4)) for rank in range(world)]
    times = sorted(str(time) for batches in ranks for batch in batches for time in batch.times)
    year = 2017 if split == "validation" else 2018
    assert times == [f"{year}-01-0{day}T00" for day in range(1, 7)]
    assert all(batch.targets.shape[1] == 4 for batches in ranks for batch in batches)
    assert all(PADDING not in batch.places for batches in ranks for batch in batches)


def test_rank_without_samples_gets_no_batches(tiny_store: Path, tiny_config: TinyConfig) -> None:
    config = tiny_config(data={"workers": 1})
    assert list(EvaluationLoader(open_store(tiny_store), config, "test", 0, 8, 4)) == []


def test_too_few_samples_are_refused_before_anything_is_read(
    tiny_store: Path, tiny_config: TinyConfig
) -> None:
    config = tiny_config(
        data={"time_stride_hours": 24}, training={"nodes": 50, "run_dir": "run", "epochs": 1}
    )
    with pytest.raises(ValueError, match=r"give 24 samples, fewer .*2 on each of 50 ranks = 100"):
        TrainingLoader(open_store(tiny_store), config, 0, 50).steps(0)


def test_a_store_that_does_not_fit_is_refused_before_anything_is_read(
    tiny_store: Path, tiny_config: TinyConfig
) -> None:
    with pytest.raises(ValueError, match="has 8 x 16 cells"):
        EvaluationLoader(open_store(tiny_store), tiny_config(data={"grid": [16, 32]}), "test", 0, 1, 2)


# With loader processes.


@pytest.mark.slow
@pytest.mark.parametrize(("start", "workers"), [("forkserver", 2), ("spawn", 1)])
def test_loader_processes_and_direct_reading_give_equal_batches(
    tiny_store: Path, tiny_config: TinyConfig, start: str, workers: int
) -> None:
    here = epoch(tiny_store, tiny_config())
    there = epoch(tiny_store, tiny_config(data={"workers": workers, "worker_start": start}))
    assert [len(step) for step in there] == [len(step) for step in here]
    for mine, theirs in zip(here, there, strict=True):
        for first, second in zip(mine, theirs, strict=True):
            assert_same(first, second)


@pytest.mark.slow
def test_loader_processes_wait_for_the_next_pass_over_a_split(
    tiny_store: Path, tiny_config: TinyConfig
) -> None:
    loader = EvaluationLoader(open_store(tiny_store), tiny_config(data={"workers": 1}), "test", 0, 1, 2)
    assert len(loader) == 3
    assert next(iter(loader)).places == (0, 1)
    before = {process.pid for process in multiprocessing.active_children()}
    assert [batch.places for batch in loader] == [(0, 1), (2, 3), (4, 5)]
    assert {process.pid for process in multiprocessing.active_children()} == before


@pytest.mark.slow
def test_loader_processes_are_kept_over_epochs(tiny_store: Path, tiny_config: TinyConfig) -> None:
    others = set(multiprocessing.active_children())
    loader = TrainingLoader(open_store(tiny_store), tiny_config(data={"workers": 2}), 0, 1)
    first = list(loader.steps(0, 20))
    before = set(multiprocessing.active_children()) - others
    assert len(before) == 2
    next(loader.steps(1))  # an epoch that is abandoned
    second = list(loader.steps(2, 20))
    assert set(multiprocessing.active_children()) - others == before
    here = TrainingLoader(open_store(tiny_store), tiny_config(), 0, 1)
    for steps, epoch_ in ((first, 0), (second, 2)):
        for mine, theirs in zip(here.steps(epoch_, 20), steps, strict=True):
            for one, other in zip(mine, theirs, strict=True):
                assert_same(one, other)


# Faults.

SHARD = Path("fields", "c", "20", "0", "0", "0")
"""The shard of 2018-01-01, the first day of the test split."""


def cut_short(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:500])


def flip_a_byte(shard: Path) -> None:
    raw = bytearray(shard.read_bytes())
    raw[300] ^= 1
    shard.write_bytes(raw)


def evaluation_loader(store: Path, tiny_config: TinyConfig, workers: int) -> EvaluationLoader:
    return EvaluationLoader(open_store(store), tiny_config(data={"workers": workers}), "test", 0, 1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before the first step", "by a loader process"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [(cut_short, "has no valid index"), (flip_a_byte, "has a wrong checksum"), (Path.unlink, "is missing")],
    ids=["cut short", "flipped byte", "gone"],
)
def test_a_damaged_shard_ends_with_one_paragraph_that_names_store_and_time(
    damaged: Path, tiny_config: TinyConfig, when: str, damage: Callable[[Path], object], message: str
) -> None:
    workers = int(when == "by a loader process")
    loader = evaluation_loader(damaged, tiny_config, workers) if workers else None
    damage(damaged / SHARD)
    with pytest.raises(
        ValueError, match=rf"unreadable fields at 2018-01-01T00: the shard {SHARD} {message}"
    ) as caught:
        list(loader or evaluation_loader(damaged, tiny_config, workers))
    assert "Traceback" not in str(caught.value)
    assert str(damaged) in str(caught.value)


def set_deadline(loader: TrainingLoader | EvaluationLoader, seconds: int) -> None:
    """Set a short deadline after the loader processes have started, which is slow on a busy machine."""
    loader._batches._deadline_s = seconds


@pytest.fixture
def stalled(damaged: Path) -> Iterator[Callable[[], Path]]:
    """Return a function that replaces the last shard by a file that blocks each process that opens it."""
    last = damaged / "fields" / "c" / "29" / "0" / "0" / "0"

    def stall() -> Path:
        last.unlink()
        os.mkfifo(last)  # opening a FIFO for reading blocks until it has a writer
        return damaged

    yield stall
    os.close(os.open(last, os.O_RDWR | os.O_NONBLOCK))  # releases a thread that waits for it


@pytest.mark.slow
def test_a_file_system_that_does_not_answer_ends_before_the_first_step(
    stalled: Callable[[], Path], tiny_config: TinyConfig
) -> None:
    store = stalled()
    with pytest.raises(TimeoutError, match=r"did not answer for 5 s: the shard fields/c/29/") as caught:
        EvaluationLoader(open_store(store, deadline_s=5), tiny_config(), "test", 0, 1, 2)
    assert str(store) in str(caught.value)


@pytest.mark.slow
def test_a_file_system_that_does_not_answer_a_loader_process_ends_at_the_deadline(
    damaged: Path, stalled: Callable[[], Path], tiny_config: TinyConfig
) -> None:
    loader = evaluation_loader(damaged, tiny_config, 1)
    stalled()
    batches = iter(loader)
    next(batches)
    set_deadline(loader, 1)
    with pytest.raises(
        TimeoutError, match=r"did not answer for 1 s: .* 2018-01-05T00, .*fields/c/29/"
    ) as caught:
        list(batches)
    assert str(damaged) in str(caught.value)


@pytest.mark.slow
def test_blocked_loader_process_ends_at_the_deadline(tiny_store: Path, tiny_config: TinyConfig) -> None:
    others = set(multiprocessing.active_children())
    loader = TrainingLoader(open_store(tiny_store), tiny_config(data={"workers": 1}), 0, 1)
    steps = loader.steps(0)
    next(steps)
    set_deadline(loader, 2)
    (worker,) = [process for process in multiprocessing.active_children() if process not in others]
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGSTOP)
    with pytest.raises(TimeoutError, match=r"did not answer for 2 s: the micro-batch of 2016-01-\d\dT"):
        list(steps)
    worker.join(timeout=20)
    assert worker.exitcode == -signal.SIGKILL


@pytest.mark.slow
def test_missing_inputs_come_filled_and_counted_from_loader_processes(
    tiny_dataset: xr.Dataset, tmp_path: Path, tiny_config: TinyConfig
) -> None:
    tiny_dataset["fields"][480:504, 3, 2:4, 5:7] = np.nan  # rh on 2018-01-01
    tiny_dataset["fields"][492, 10, 0, 0] = np.inf  # pm25, a target 12 h later
    write_store(tiny_dataset, tmp_path / "holes.zarr")
    write_statistics(tmp_path / "holes.zarr", [2016])
    config = tiny_config(data={"workers": 1, "store": str(tmp_path / "holes.zarr")})
    batches = list(EvaluationLoader(open_store(tmp_path / "holes.zarr"), config, "test", 0, 1, 1))
    assert [batch.filled for batch in batches] == [4, 0, 0, 0, 0, 0]
    first = batches[0]
    assert torch.isfinite(first.inputs).all()
    assert torch.equal(first.inputs[0, 3, 2:4, 5:7], torch.zeros(2, 2))
    assert torch.isfinite(first.targets).all()
    assert not first.valid[0, 0, 0, 0, 0]


@pytest.mark.slow
def test_loader_processes_ignore_signals_for_the_trainer(tiny_store: Path, tiny_config: TinyConfig) -> None:
    others = set(multiprocessing.active_children())
    steps = TrainingLoader(open_store(tiny_store), tiny_config(data={"workers": 2}), 0, 1).steps(0)
    next(steps)
    workers = [process for process in multiprocessing.active_children() if process not in others]
    assert len(workers) == 2
    # The kill command sends the signal from another process, as a scheduler does.
    for name in ("INT", "TERM", "USR1"):
        os.spawnlp(os.P_WAIT, "kill", "kill", f"-{name}", *(str(process.pid) for process in workers))
    assert len(list(steps)) == 23


@pytest.fixture
def between_passes(tiny_store: Path, tiny_config: TinyConfig) -> tuple[EvaluationLoader, BaseProcess]:
    """A loader after one pass, and its only loader process."""
    others = set(multiprocessing.active_children())
    loader = EvaluationLoader(open_store(tiny_store), tiny_config(data={"workers": 1}), "test", 0, 1, 2)
    list(loader)
    (worker,) = [process for process in multiprocessing.active_children() if process not in others]
    return loader, worker


@pytest.mark.slow
def test_loader_processes_end_when_the_trainer_terminates_them(
    between_passes: tuple[EvaluationLoader, BaseProcess],
) -> None:
    _, worker = between_passes
    # The loader does not report the end of a process unless it is used again.
    worker.terminate()
    worker.join(timeout=20)
    assert worker.exitcode == 0


@pytest.mark.slow
def test_loader_process_killed_between_passes_ends_the_next_with_a_message(
    between_passes: tuple[EvaluationLoader, BaseProcess],
) -> None:
    loader, worker = between_passes
    worker.kill()
    worker.join(timeout=20)
    message = r"loader process ended unexpectedly .* micro-batch of 2018-01-01T00.*`data\.workers`"
    with pytest.raises(ValueError, match=message):
        list(loader)


@pytest.mark.slow
def test_a_loader_process_that_is_killed_ends_with_a_message(
    tiny_store: Path, tiny_config: TinyConfig
) -> None:
    others = set(multiprocessing.active_children())
    steps = TrainingLoader(open_store(tiny_store), tiny_config(data={"workers": 1}), 0, 1).steps(0)
    next(steps)
    (worker,) = [process for process in multiprocessing.active_children() if process not in others]
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    message = r"loader process ended unexpectedly .* micro-batch of 2016-01-\d\dT.*`data\.workers`"
    with pytest.raises(ValueError, match=message):
        list(steps)
