import io
from pathlib import Path

import pytest
from rich.console import Console

from aqtopo.config import load_config
from aqtopo.planning import Plan, make_plan
from aqtopo.planning.hardware import MACHINES, Assumptions, machine_named
from aqtopo.planning.scaling import efficiency, sample_bytes, scaling, step_time
from aqtopo.planning.scaling_tables import as_rows, draw_scaling, scaling_tables

IN_BF16 = ["model.local_bias=near", "deepspeed.bf16.enabled=true"]
MI250X = MACHINES["mi250x"]


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(load_config("ds_configs/lumi_400gpu.json"))


def printed(plan: Plan) -> str:
    step = step_time(plan, MI250X, 1, Assumptions())
    console = Console(file=io.StringIO(), width=140)
    for table in scaling_tables(plan, MI250X, Assumptions(), step, [step]):
        console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_step_is_the_sum_of_its_parts(plan: Plan) -> None:
    step = step_time(plan, MI250X, 50, Assumptions())
    assert (step.world, step.samples) == (400, 1600)
    parts = step.compute_s + step.reduce_s + step.gather_s + step.optimizer_s - step.hidden_s
    assert step.seconds == pytest.approx(parts)
    assert step.compute_s == pytest.approx(
        2 * (plan.arithmetic.forward + plan.arithmetic.backward) / (0.4 * 47.9e12)
    )


def test_small_buckets_hide_the_reduction_and_one_bucket_hides_nothing() -> None:
    def hidden(bucket: int, overlap: str = "true") -> float:
        overrides = [
            f"deepspeed.zero_optimization.reduce_bucket_size={bucket}",
            f"deepspeed.zero_optimization.overlap_comm={overlap}",
        ]
        made = make_plan(load_config("ds_configs/lumi_400gpu.json", overrides))
        step = step_time(made, MI250X, 50, Assumptions())
        return step.hidden_s / step.reduce_s

    assert hidden(60_000_000) == 0.0
    assert hidden(6_000_000) == pytest.approx(8 / 9)
    assert hidden(6_000_000, "false") == 0.0


def test_what_is_in_float32_whatever_the_precision_is_told_with_its_rate(plan: Plan) -> None:
    local = make_plan(load_config("ds_configs/lumi_400gpu.json", IN_BF16))
    assert "40% of 191.5 TFLOP/s assumed, in float32 of 47.9" in printed(local)
    assert "of it in float32" in printed(local)
    assert "40% of 47.9 TFLOP/s assumed " in printed(plan)
    assert "of it in float32" not in printed(plan)
    flop = local.as_json()["flop_a_micro_step"]
    assert 0 < flop["float32_attention"] < flop["attention"]


def test_efficiency_falls_with_the_nodes_and_is_counted_from_one(plan: Plan) -> None:
    rows = scaling(plan, MI250X, Assumptions())
    assert (rows[0].nodes, rows[-1].nodes) == (1, 1024)
    shares = [efficiency(row, rows[0]) for row in rows]
    assert shares[0] == 1.0
    assert shares == sorted(shares, reverse=True)
    assert [row["efficiency"] for row in as_rows(rows)] == shares


def test_a_loader_reads_whole_chunks_of_all_channels(plan: Plan) -> None:
    assert sample_bytes(plan.config) == 2 * 11 * 128 * 256 * 4
    step = step_time(plan, MI250X, 50, Assumptions())
    assert step.loader_rate == pytest.approx(8 * 2 * 2 * sample_bytes(plan.config) / step.seconds)


def test_the_scaling_is_drawn(plan: Plan, tmp_path: Path) -> None:
    rows = scaling(plan, MI250X, Assumptions())
    draw_scaling(rows, MI250X, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"matplotlib writes no such file. Choose \.png"):
        draw_scaling(rows, MI250X, tmp_path / "scaling.doc")


def test_an_unknown_machine_is_named() -> None:
    assert machine_named(None) is None
    with pytest.raises(ValueError, match=r"--gpu abacus: nothing is known of it\. Choose mi250x or h100"):
        machine_named("abacus")
