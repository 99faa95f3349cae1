import io
import re
from collections.abc import Callable, Iterator

import pytest
from rich.console import Console
from rich.table import Table

from aqtopo.config import RunConfig, load_config
from aqtopo.planning.machines import find_node_type
from aqtopo.planning.plan import make_plan
from aqtopo.planning.scaling import step_time
from aqtopo.planning.tables import plan_tables, readable_bytes, scaling_tables


def printed(tables: Iterator[Table]) -> str:
    console = Console(file=io.StringIO(), width=120)
    for table in tables:
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
    text = printed(plan_tables(make_plan(load_config("ds_configs/resume_reference.json"), 3)))
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


def test_duration_of_a_short_run_has_a_suitable_unit() -> None:
    plan = make_plan(load_config("ds_configs/demo_cpu.json"))
    node_type = find_node_type("h100", 1)
    assert node_type is not None
    here = step_time(plan, node_type, 1, 0.4)
    text = printed(scaling_tables(plan, node_type, 0.4, here, [here]))
    assert re.search(r"whole run +│ +0\.\d+ s ", text), text


def test_a_run_without_validation_is_reported(tiny_config: Callable[..., RunConfig]) -> None:
    plan = make_plan(tiny_config(training={"validate_every": 10_000}))
    assert "none: an epoch has fewer than 10000 micro-steps" in printed(plan_tables(plan))


def test_many_validations_are_abbreviated(tiny_config: Callable[..., RunConfig]) -> None:
    plan = make_plan(tiny_config(training={"validate_every": 2}))
    due = len(plan.calendar.validations(0))
    assert due > 4
    assert f"({due - 3} more)" in " ".join(printed(plan_tables(plan)).split())
