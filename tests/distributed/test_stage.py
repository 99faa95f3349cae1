"""Two ranks of one node with `data.stage`: one copies, both read that; both end when it cannot be made."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aqtopo.config import RunConfig

pytestmark = pytest.mark.slow


def test_one_rank_copies_what_both_read_and_both_end_when_it_cannot(
    tiny_config: Callable[..., RunConfig], tiny_store: Path, start_ranks: Callable[..., Any], tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.zarr"
    shutil.copytree(tiny_store, damaged)
    (damaged / "fields" / "c" / "3" / "0" / "0" / "0").unlink()
    (tmp_path / "node").mkdir()

    def config(store: Path) -> RunConfig:
        return tiny_config(
            data={"stage": str(tmp_path / "node"), "store": str(store)},
            training={"ranks_per_node": 2, "epochs": 1, "validate_every": 24},
            deepspeed={"gradient_accumulation_steps": 1},
        )

    bad = tmp_path / "bad.json"
    bad.write_text(config(damaged).to_json(), encoding="utf-8")
    program = str(Path(__file__).with_name("stage.py"))
    ranks = start_ranks(config(tiny_store), program=[program], command=str(bad))
    for rank in ranks:
        code, output = rank.finish()
        assert code == 0, output
        found = json.loads(output.splitlines()[-1])
        lost = "has unreadable fields at 2016-01-04T00: the shard fields/c/3/0/0/0 is missing"
        assert f"{damaged} {lost}" in found.pop("problem")
        assert found == {"retry": "failed", "shards": 20, "equal": 480, "left": False}
