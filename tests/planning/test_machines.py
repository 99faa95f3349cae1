import json
import re
from pathlib import Path
from typing import Any

import pytest

from aqtopo.planning.machines import find_node_type
from aqtopo.planning.node_types import NODE_TYPES

MACHINE = {
    "name": "four H100",
    "gpus_per_node": 4,
    "memory_gb": 64,
    "tflops": {"fp32": 67, "bf16": 989, "fp16": 989},
    "memory_tb_s": 2.0,
    "node_network_gb_s": 50,
    "inside_network_gb_s": 450,
    "storage_gb_s": 100,
}


def written(folder: Path, **changes: Any) -> str:
    path = folder / "machine.json"
    path.write_text(json.dumps(MACHINE | changes), encoding="utf-8")
    return str(path)


def test_known_accelerators() -> None:
    assert set(NODE_TYPES) == {"mi250x", "mi300x", "a100", "h100", "h200", "gh200"}
    assert find_node_type(None, 8) is None
    h100 = find_node_type("h100", 4)
    assert h100 is not None
    assert (h100.ring_bandwidth(1, 4), h100.ring_bandwidth(2, 4)) == (450e9, 200e9)


def test_unknown_accelerator_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--gpu abacus is unknown\. Choose mi250x, .* FILE\.json"):
        find_node_type("abacus", 8)


def test_machine_in_a_file(tmp_path: Path) -> None:
    machine = find_node_type(written(tmp_path), 4)
    assert machine is not None
    assert (machine.name, machine.memory, machine.flops["bf16"]) == ("four H100", 64e9, 989e12)
    assert machine.ring_bandwidth(2, 4) == 50e9
    assert machine.storage == 100e9


@pytest.mark.parametrize(
    ("changes", "ranks", "message"),
    [
        ({"gpus": 4}, 4, "gpus: unknown key|gpus = 4: unknown key"),
        ({"memory_gb": -1}, 4, "memory_gb = -1"),
        ({"tflops": {"fp32": 67}}, 4, "tflops.bf16"),
        ({}, 8, "training.ranks_per_node = 8, but a node of four H100 has 4"),
    ],
)
def test_invalid_machine_is_refused(
    tmp_path: Path, changes: dict[str, Any], ranks: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        find_node_type(written(tmp_path, **changes), ranks)


def test_the_documented_machine_is_valid(tmp_path: Path) -> None:
    documented = re.search(
        r"```json\n(\{.*?gpus_per_node.*?\})\n```", Path("docs/clusters.md").read_text("utf-8"), re.DOTALL
    )
    assert documented
    (tmp_path / "machine.json").write_text(documented[1], encoding="utf-8")
    assert find_node_type(str(tmp_path / "machine.json"), 4)
