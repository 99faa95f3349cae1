"""`aqtopo train` as the tasks of a real `srun`."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from aqtopo.config import RunConfig
from tests.events import events

from .cluster import NODES, SlurmCluster

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]

AQTOPO = Path(sys.executable).with_name("aqtopo")
ON_CPU = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


def test_srun_reaches_both_nodes(slurm_cluster: SlurmCluster) -> None:
    said = slurm_cluster.run("srun", "-N2", "-n2", "printenv", "SLURMD_NODENAME")
    assert sorted(said.split()) == list(NODES)


@pytest.mark.parametrize(
    ("nodes", "variables"),
    [
        pytest.param(1, {}, id="one-node"),
        pytest.param(2, {"MASTER_ADDR": "127.0.0.1"}, id="two-nodes"),  # each node is this host
    ],
)
def test_srun_trains_with_a_rank_in_each_task(
    nodes: int,
    variables: dict[str, str],
    slurm_cluster: SlurmCluster,
    tiny_config: Callable[..., RunConfig],
    tmp_path: Path,
) -> None:
    config = tiny_config(
        training={"nodes": nodes, "ranks_per_node": 2 // nodes, "epochs": 1, "validate_every": 12}
    )
    file, run_dir = tmp_path / "tiny.json", Path(config.training.run_dir)
    file.write_text(config.to_json(), encoding="utf-8")

    slurm_cluster.run(
        "srun", f"-N{nodes}", "-n2", AQTOPO, "train", file, timeout_s=240, **ON_CPU, **variables
    )

    run = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    assert (run["launcher"], run["world_size"]) == ("slurm", 2)
    start, *steps, stop = events(run_dir, "start", "step", "stop")
    assert (start["event"], start["world_size"]) == ("start", 2)
    assert (stop["event"], stop["reason"]) == ("stop", "all epochs done")
    # 24 times x 4 horizons, 2 ranks x micro-batch 2 x accumulation 2
    assert [step["step"] for step in steps] == list(range(1, 13))
