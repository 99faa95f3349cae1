import io

import pytest
from rich.console import Console

from aqtopo.config import load_config
from aqtopo.planning.node_types import NODE_TYPES
from aqtopo.planning.plan import Plan, make_plan
from aqtopo.planning.scaling import (
    UTILIZATION,
    efficiency,
    sample_bytes,
    scaling,
    step_time,
)
from aqtopo.planning.tables import as_rows, scaling_tables

IN_BF16 = ["model.local_bias=near", "deepspeed.bf16.enabled=true"]
MI250X = NODE_TYPES["mi250x"]


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(load_config("ds_configs/lumi_400gpu.json"))


def printed(plan: Plan) -> str:
    step = step_time(plan, MI250X, 1)
    console = Console(file=io.StringIO(), width=140)
    for table in scaling_tables(plan, MI250X, UTILIZATION, step, [step]):
        console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_step_is_the_sum_of_its_parts(plan: Plan) -> None:
    step = step_time(plan, MI250X, 50)
    assert (step.world, step.samples) == (400, 1600)
    parts = step.compute_s + step.reduce_s + step.gather_s + step.optimizer_s - step.hidden_s
    assert step.seconds == pytest.approx(parts)
    assert step.compute_s == pytest.approx(2 * (plan.flop.forward + plan.flop.backward) / (0.4 * 47.9e12))


def test_small_buckets_overlap_and_a_single_bucket_does_not() -> None:
    def hidden(bucket: int, overlap: str = "true") -> float:
        overrides = [
            f"deepspeed.zero_optimization.reduce_bucket_size={bucket}",
            f"deepspeed.zero_optimization.overlap_comm={overlap}",
        ]
        made = make_plan(load_config("ds_configs/lumi_400gpu.json", overrides))
        step = step_time(made, MI250X, 50)
        return step.hidden_s / step.reduce_s

    assert hidden(60_000_000) == 0.0
    assert hidden(6_000_000) == pytest.approx(8 / 9)
    assert hidden(6_000_000, "false") == 0.0


def test_float32_attention_is_listed_with_its_rate(plan: Plan) -> None:
    local = make_plan(load_config("ds_configs/lumi_400gpu.json", IN_BF16))
    assert "40% of 191.5 TFLOP/s assumed, in float32 of 47.9" in printed(local)
    assert "in float32 " in printed(local)
    assert "40% of 47.9 TFLOP/s assumed " in printed(plan)
    assert "in float32 " not in printed(plan)
    flop = local.as_json()["flop_a_micro_step"]
    assert 0 < flop["float32_attention"] < flop["attention"]


def test_efficiency_decreases_from_one_node_on(plan: Plan) -> None:
    rows = scaling(plan, MI250X)
    assert (rows[0].nodes, rows[-1].nodes) == (1, 1024)
    shares = [efficiency(row, rows[0]) for row in rows]
    assert shares[0] == 1.0
    assert shares == sorted(shares, reverse=True)
    assert [row["efficiency"] for row in as_rows(rows)] == shares


def test_the_loader_reads_all_channels(plan: Plan) -> None:
    assert sample_bytes(plan.config, plan.calendar.channels) == 2 * 11 * 128 * 256 * 4
    step = step_time(plan, MI250X, 50)
    assert step.loader_rate == pytest.approx(
        8 * 2 * 2 * sample_bytes(plan.config, plan.calendar.channels) / step.seconds
    )


def test_ranks_per_node_are_those_of_the_run() -> None:
    overrides = ["training.ranks_per_node=4", "training.nodes=10"]
    made = make_plan(load_config("ds_configs/lumi_400gpu.json", overrides))
    step = step_time(made, NODE_TYPES["h100"], 10)
    assert (step.world, step.samples) == (40, 160)
    assert [row.world for row in scaling(made, NODE_TYPES["h100"])][:3] == [4, 8, 16]
    eight = step_time(make_plan(load_config("ds_configs/lumi_400gpu.json")), NODE_TYPES["h100"], 5)
    assert step.reduce_s > 1.8 * eight.reduce_s  # a node has half the ports
