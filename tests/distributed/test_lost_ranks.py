"""Ranks that stop, die, stay away or have other data: the others end soon, and say which rank it was."""

import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

from aqtopo.config import RunConfig
from aqtopo.data import write_statistics, write_store

pytestmark = pytest.mark.slow

TinyConfig = Callable[..., RunConfig]
UNLUCKY = str(Path(__file__).with_name("unlucky.py"))


def endless(tiny_config: TinyConfig, ranks: int = 2, **changes: Any) -> RunConfig:
    training = {"ranks_per_node": ranks, "epochs": 2000, "validate_every": 16}
    deepspeed = {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 1}
    return tiny_config(training=training, deepspeed=deepspeed, **changes)


def wait_for_steps(config: RunConfig, ranks: Sequence[Any]) -> None:
    metrics = Path(config.training.run_dir) / "metrics.jsonl"
    while not (metrics.exists() and '"event": "step"' in metrics.read_text(encoding="utf-8")):
        assert not any(rank.process.poll() for rank in ranks), [rank.finish() for rank in ranks]
        time.sleep(0.1)


@pytest.mark.parametrize("stopped", [0, 2])
def test_a_stopped_rank_is_named_and_the_others_leave_their_stacks(
    stopped: int,
    tiny_config: TinyConfig,
    start_ranks: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AQTOPO_DEADLINES", "step=3, data=3, save=3, validation=3")
    config = endless(tiny_config, ranks=3)
    ranks = start_ranks(config)
    wait_for_steps(config, ranks)
    ranks[stopped].process.send_signal(signal.SIGSTOP)

    for rank in {0, 1, 2} - {stopped}:
        code, output = ranks[rank].finish()
        assert code == 1
        said = " ".join(output.split())
        if stopped == 0:
            assert "past the deadline of the phase `" in said
            assert "rank 0, which serves the heartbeat store, or its node does not answer" in said
        else:
            where = f"rank 2 (on {socket.gethostname()}, process {ranks[2].process.pid}, in `"
            assert f"no new heartbeat from {where}" in said
        stacks = (Path(config.training.run_dir) / "stacks" / f"rank{rank:05d}.txt").read_text(
            encoding="utf-8"
        )
        assert "aqtopo/training/start.py" in stacks


@pytest.mark.parametrize(
    ("accident", "verdict"),
    [
        ("error", "because another rank failed: failed: rank 1 (on"),
        ("kill", "no new heartbeat from rank 1 (on"),
    ],
)
def test_a_rank_that_dies_in_its_first_forward_is_named_by_the_others(
    accident: str,
    verdict: str,
    tiny_config: TinyConfig,
    start_ranks: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACCIDENT", accident)
    monkeypatch.setenv("AQTOPO_DEADLINES", "stage=2")  # nothing is staged: it makes the ranks look more often
    survivor, victim = start_ranks(endless(tiny_config), program=[UNLUCKY])
    code, output = survivor.finish()
    assert code == 1
    assert verdict in " ".join(output.split())
    assert (victim.process.poll() is None) == (accident == "error")
    assert "Traceback" not in output


def test_a_rank_that_never_comes_is_named(
    tiny_config: TinyConfig, start_ranks: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AQTOPO_DEADLINES", "connect=4")
    present, absent = start_ranks(endless(tiny_config))
    absent.process.kill()
    code, output = present.finish()
    assert code == 1
    assert "after 4 s 1 of 2 ranks have not arrived: 1." in " ".join(output.split())


def test_ranks_with_other_data_are_told_before_the_first_step(
    tiny_config: TinyConfig, tiny_dataset: xr.Dataset, start_ranks: Callable[..., Any], tmp_path: Path
) -> None:
    config = endless(tiny_config, data={"store": "tiny.zarr"})
    folders = {rank: tmp_path / str(rank) for rank in (0, 1)}
    for rank, folder in folders.items():
        folder.mkdir()
        write_store(tiny_dataset.assign_attrs(source=f"copy {rank}"), folder / "tiny.zarr")
        write_statistics(folder / "tiny.zarr", [2016])

    for rank in start_ranks(config, folders=folders):
        code, output = rank.finish()
        said = " ".join(output.split())
        assert code == 2
        assert f"data: rank 1 on {socket.gethostname()} has " in said
        assert "1 rank(s) have " in said
        assert "Traceback" not in output
    assert not Path(config.training.run_dir).exists()


def test_doctor_compares_all_ranks_and_leaves_nothing(
    tiny_config: TinyConfig, start_ranks: Callable[..., Any]
) -> None:
    config = tiny_config(training={"ranks_per_node": 2, "validate_every": 12})
    main, other = start_ranks(config, command="doctor")
    assert [rank.finish()[0] for rank in (other,)] == [0]
    code, output = main.finish()
    assert code == 0
    assert "2 rank(s), compared in" in output
    for fact in ("version of torch", "configuration", "data", "wind order"):
        assert fact in output
    assert not Path(config.training.run_dir).exists()
    assert not list(Path(config.training.run_dir).parent.glob(".aqtopo-doctor*"))
