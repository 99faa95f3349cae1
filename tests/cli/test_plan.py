import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from aqtopo.config import RunConfig

REFERENCE = "ds_configs/resume_reference.json"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "aqtopo", "plan", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_stdout_holds_only_json() -> None:
    done = run(REFERENCE, "--at-epoch", "3", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["tensors"] == 91
    assert f"{plan['groups']['head']['lr']:.6e}" == "3.990074e-05"
    assert "complete hourly calendar" in done.stderr


def test_invalid_epoch_gives_one_paragraph_and_exit_code_2() -> None:
    done = run(REFERENCE, "--at-epoch", "10")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "training.epochs = 10" in done.stderr
    assert "Traceback" not in done.stderr


def test_planning_loads_no_deepspeed() -> None:
    program = (
        "import sys; from aqtopo.config import load_config; from aqtopo.planning.plan import make_plan; "
        f"make_plan(load_config({REFERENCE!r})); print('deepspeed' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_other_ranks_are_modelled_and_the_accumulation_that_keeps_the_batch_is_named() -> None:
    done = run(REFERENCE, "--gpu", "h100", "--set", "training.ranks_per_node=4", "--nodes", "4", "--json")
    assert done.returncode == 0, done.stderr
    assert [row["world"] for row in json.loads(done.stdout)["scaling"]][:3] == [4, 8, 16]
    assert "A step has 64 samples on 16 ranks; on the configured 400 it has 1,600." in done.stderr
    assert "--set deepspeed.gradient_accumulation_steps=50 keeps them" in done.stderr


def test_overrides_are_planned_with_an_existing_store(
    tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    path = tmp_path / "tiny.json"
    path.write_text(tiny_config().to_json(), encoding="utf-8")
    done = run(str(path), "--set", "model.depth=3", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert "blocks.2" in plan["activation_bytes_estimate"]["parts"]
    assert plan["counted_in"] == "store"
    assert done.stderr == ""
