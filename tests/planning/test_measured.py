"""Planned bytes in memory and in collectives, compared with real DeepSpeed steps on the CPU."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aqtopo.config import RunConfig
from aqtopo.planning.plan import make_plan
from aqtopo.planning.zero import PASSES, step_collectives

pytestmark = pytest.mark.slow

TinyConfig = Callable[..., RunConfig]
HERE = Path(__file__).parent


def run_alone(script: str, *arguments: object) -> None:
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in launcher}
    done = subprocess.run(
        [sys.executable, str(HERE / script), *map(str, arguments)],
        env=environment | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def sized(
    tiny_config: TinyConfig, dim: int, depth: int, grid: list[int], batch: int, checkpointing: bool
) -> RunConfig:
    return tiny_config(
        name=f"{dim}-{depth}-{grid[0]}-{batch}-{checkpointing}",
        data={"grid": grid, "store": "none.zarr"},
        model={"dim": dim, "depth": depth, "dropout": 0.1, "gradient_checkpointing": checkpointing},
        deepspeed={
            "train_micro_batch_size_per_gpu": batch,
            "gradient_accumulation_steps": 1,
            "zero_optimization": {"stage": 2, "reduce_bucket_size": 200_000},
        },
    )


def test_peaks_of_seven_sizes_are_within_15_percent_of_the_plan(
    tiny_config: TinyConfig, tmp_path: Path
) -> None:
    sizes: list[tuple[int, int, list[int], int, bool]] = [
        (64, 2, [16, 32], 3, False),
        (64, 2, [32, 64], 2, False),
        (128, 3, [32, 64], 2, True),
        (128, 2, [64, 64], 1, False),
        (192, 4, [32, 64], 4, False),
        (192, 4, [32, 64], 4, True),
        (256, 2, [32, 32], 8, False),
    ]
    configs = {tmp_path / f"{i}.json": sized(tiny_config, *size) for i, size in enumerate(sizes)}
    for path, config in configs.items():
        path.write_text(config.to_json(), encoding="utf-8")
    run_alone("measured_peaks.py", tmp_path / "peaks.json", *configs)
    measured = json.loads((tmp_path / "peaks.json").read_text(encoding="utf-8"))
    ratios = {config.name: make_plan(config).peak / measured[str(path)] for path, config in configs.items()}
    assert all(0.85 <= ratio <= 1.15 for ratio in ratios.values()), ratios


@pytest.mark.parametrize(
    ("zero", "worlds"),
    [
        pytest.param({}, (2, 4, 8), id="all-reduce"),
        pytest.param({"use_multi_rank_bucket_allreduce": False}, (2, 4), id="reduce-to-owner"),
        pytest.param({"allgather_bucket_size": 1_000}, (2,), id="gather-in-pieces"),
    ],
)
def test_bytes_sent_by_2_to_8_ranks_are_within_5_percent_of_the_plan(
    zero: dict[str, Any], worlds: tuple[int, ...], tiny_config: TinyConfig, tmp_path: Path
) -> None:
    block = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 2,
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 20_000, **zero},
    }
    config = tiny_config(data={"store": "none.zarr"}, deepspeed=block)
    (tmp_path / "config.json").write_text(config.to_json(), encoding="utf-8")
    run_alone("counted_traffic.py", tmp_path / "config.json", tmp_path, *worlds)
    for world in worlds:
        here = tiny_config(data={"store": "none.zarr"}, deepspeed=block, training={"ranks_per_node": world})
        elements = {name: group.parameters for name, group in make_plan(here).groups.items()}
        planned = sum(c.sent(world) for c in step_collectives(elements, here, 2))
        counted = json.loads((tmp_path / f"{world}.json").read_text(encoding="utf-8"))
        assert set(counted) <= set(PASSES), counted
        sent = sum(PASSES[kind] * (world - 1) / world * sum(sizes) for kind, sizes in counted.items())
        assert planned == pytest.approx(sent, rel=0.05), (world, counted)
        # DeepSpeed rounds the number of pieces down, and the last one has the rest.
        bucket_bytes = 4 * here.deepspeed.zero_optimization.allgather_bucket_size
        assert max(counted["all-gather"]) < 2 * bucket_bytes, (world, counted)
