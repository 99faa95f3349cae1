import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqtopo.config import RunConfig, load_config
from aqtopo.planning.plan import make_plan
from aqtopo.planning.zero import reduction_bytes, state_bytes, step_collectives

REFERENCE = "ds_configs/resume_reference.json"


def reference(*overrides: str) -> RunConfig:
    return load_config(REFERENCE, list(overrides))


def test_one_rank_in_fp32_holds_20_bytes_per_parameter() -> None:
    alone = reference("training.nodes=1", "training.ranks_per_node=1")
    state = state_bytes({"all": 1000}, alone)
    assert astuple(state)[:4] == (4000, 4000, 4000, 8000)
    assert state.device == 20_000
    assert state.host == 0


def test_bf16_halves_the_weights_but_not_gradients_and_optimizer_state() -> None:
    alone = reference("training.nodes=1", "training.ranks_per_node=1", "deepspeed.bf16.enabled=true")
    state = state_bytes({"all": 1000}, alone)
    assert astuple(state)[:4] == (2000, 4000, 4000, 8000)


def test_gradients_have_their_accumulation_type() -> None:
    config = reference(
        "training.nodes=1",
        "training.ranks_per_node=1",
        "deepspeed.bf16.enabled=true",
        "deepspeed.data_types.grad_accum_dtype=bf16",
    )
    assert state_bytes({"all": 1000}, config).gradients == 2000


def test_gradients_are_sent_in_their_communication_type() -> None:
    half = reference("deepspeed.bf16.enabled=true")
    whole = reference("deepspeed.bf16.enabled=true", "deepspeed.communication_data_type=fp32")
    sizes = [[one.size for one in step_collectives({"all": 8000}, config, 1)] for config in (half, whole)]
    assert sizes == [[2 * 8000, 2 * 8000], [4 * 8000, 2 * 8000]]
    assert reduction_bytes(1000, whole) - reduction_bytes(1000, half) == 4 * 1000


def test_offloaded_state_is_in_host_memory() -> None:
    config = reference(
        'deepspeed.zero_optimization.offload_optimizer={"device": "cpu"}',
        "deepspeed.zero_force_ds_cpu_optimizer=false",
    )
    state = state_bytes({"all": 8000}, config)
    assert state.device == state.parameters == 32_000
    assert state.host == 16 * 8000 // 400


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=5))
def test_padding_is_less_than_two_elements_per_group_and_rank(counts: list[int]) -> None:
    config = reference()
    state = state_bytes({str(index): count for index, count in enumerate(counts)}, config)
    padding = state.parameters // 4 - sum(counts)
    assert 0 <= padding < 2 * 400 * len(counts)
    assert state.parameters == 400 * state.master_weights
    assert state.moments == 2 * state.master_weights


def test_the_reduction_buffer_does_not_shrink_with_the_model() -> None:
    assert reduction_bytes(1, reference()) == 2 * 4 * 60_000_000  # overlap_comm is on
    single = reference("deepspeed.zero_optimization.overlap_comm=false")
    assert reduction_bytes(1, single) == 4 * 60_000_000
    waiting = reference("deepspeed.zero_optimization.contiguous_gradients=false")
    assert reduction_bytes(1000, waiting) == 2 * 4 * 1000


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.slow
def test_two_deepspeed_ranks_hold_the_planned_bytes(
    tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = tiny_config(training={"run_dir": "r", "epochs": 2, "nodes": 1, "ranks_per_node": 2})
    block = {**config.deepspeed.verbatim(), "gradient_accumulation_steps": 1}
    block["zero_optimization"] = {"stage": 2, "reduce_bucket_size": 1_000_000}
    tree = json.loads(config.to_json()) | {"deepspeed": block}
    (tmp_path / "config.json").write_text(json.dumps(tree), encoding="utf-8")
    script = "tests/planning/held_by_deepspeed.py"
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "DS_ACCELERATOR": "cpu"}
    common |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, script, tmp_path / "config.json", tmp_path / f"{rank}.json"],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=240)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(outputs)
    planned = make_plan(load_config(tmp_path / "config.json")).as_json()["state_bytes"]
    for rank in range(2):
        held = json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8"))
        assert held == {name: planned[name] for name in held}
