import io
from collections.abc import Callable

import pytest
from rich.console import Console

from aqtopo.config import RunConfig, load_config
from aqtopo.planning.plan import Plan, make_plan
from aqtopo.planning.tables import plan_tables, readable_bytes


def printed(plan: Plan) -> str:
    console = Console(file=io.StringIO(), width=120)
    for table in plan_tables(plan):
        console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (3 * 2**30, "3.00 GiB"), (2**51, "2048.00 TiB")],
)
def test_bytes_are_written_in_binary_units(count: int, text: str) -> None:
    assert readable_bytes(count) == text


def test_the_tables_distinguish_counts_and_estimates() -> None:
    text = printed(make_plan(load_config("ds_configs/resume_reference.json"), 3))
    for expected in (
        "8.145034e-06",
        "52,451,353",
        "1,600 = 2 x accumulation 2 x 400 ranks",
        "1: after 100 micro-steps, at step 311",
        "all hours: no store at data/caqra_128x256.zarr",
        "estimate, without checkpointing",
        "estimate, with checkpointing",
    ):
        assert expected in text


def test_a_run_without_validation_is_reported(tiny_config: Callable[..., RunConfig]) -> None:
    plan = make_plan(tiny_config(training={"validate_every": 10_000}))
    assert "none: an epoch has fewer than 10000 micro-steps" in printed(plan)


def test_many_validations_are_abbreviated(tiny_config: Callable[..., RunConfig]) -> None:
    plan = make_plan(tiny_config(training={"validate_every": 2}))
    due = len(plan.calendar.validations(0))
    assert due > 4
    assert f"({due - 3} more)" in " ".join(printed(plan).split())
