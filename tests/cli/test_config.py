"""`aqtopo config` from outside: what goes to which stream, and the exit code."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from aqtopo.cli.config import app
from aqtopo.config import RunConfig, load_config, schema

DEMO = "ds_configs/demo_cpu.json"


def run(
    *arguments: str, program: tuple[str, ...] = ("-m", "aqtopo", "config")
) -> subprocess.CompletedProcess[str]:
    """The real command, in a process of its own."""
    return subprocess.run([sys.executable, *program, *arguments], capture_output=True, text=True, check=False)


def test_validate_needs_no_data_and_counts_the_groups() -> None:
    result = CliRunner().invoke(app, ["validate", "ds_configs/resume_reference.json"])
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith(
        "resume_reference, 50 x 8 ranks, 1600 samples per step, fp32, "
        "tensors per group: vit_blocks 72, wind_embedding 2, head 6, others 11\n"
    )


def test_validate_refuses_groups_that_miss_a_parameter() -> None:
    arguments = ["validate", DEMO, "--set", 'optimizer.groups.2.parameters=["head.0.*"]']
    with pytest.raises(ValueError, match=rf"^{DEMO}: .*head\.2\.weight"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_validate_checks_every_file_and_names_the_faulty_ones(
    aqtopo: Any, tiny_config: Any, tmp_path: Path
) -> None:
    grid, years, good = (tmp_path / f"{name}.json" for name in ("grid", "years", "good"))
    grid.write_text(tiny_config(data={"grid": [16, 32]}).to_json(), encoding="utf-8")
    years.write_text(tiny_config(data={"train_years": [2015]}).to_json(), encoding="utf-8")
    good.write_text(tiny_config().to_json(), encoding="utf-8")
    ended = aqtopo("config", "validate", grid, tmp_path / "absent.json", years, good)
    assert ended.code == 2
    for file, fault in (
        (grid, "has 8 x 16 cells"),
        (tmp_path / "absent.json", "cannot be read"),
        (years, "2015"),
    ):
        assert re.search(f"{re.escape(str(file))}: .*{fault}", " ".join(ended.err.split())), ended.err
    assert f"{good}: valid" in ended.out


@pytest.mark.parametrize("command", [("config", "validate"), ("plan",), ("train",)])
def test_a_grid_that_the_store_does_not_have_is_refused(
    aqtopo: Any, tiny_config: Any, tmp_path: Path, command: tuple[str, ...]
) -> None:
    file = tmp_path / "wrong.json"
    file.write_text(tiny_config(data={"grid": [16, 32]}).to_json(), encoding="utf-8")
    ended = aqtopo(*command, file)
    assert ended.code == 2
    assert "has 8 x 16 cells, but `data.grid` is 16 x 32" in ended.complaint


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"variables": ["u", "v", "elevation", "blh"]}, "lacks the channel blh"),
        ({"train_years": [2015]}, "2015"),
    ],
)
def test_channels_and_years_that_the_store_does_not_have_are_refused(
    aqtopo: Any, tiny_config: Any, tmp_path: Path, data: dict[str, Any], message: str
) -> None:
    file = tmp_path / "wrong.json"
    file.write_text(tiny_config(data=data).to_json(), encoding="utf-8")
    for command in (("config", "validate"), ("plan",)):
        ended = aqtopo(*command, file)
        assert ended.code == 2
        assert message in ended.complaint


def test_validate_names_variables_that_no_store_confirms(
    aqtopo: Any, tiny_config: Any, tmp_path: Path
) -> None:
    file = tmp_path / "own.json"
    data = {"store": "no.zarr", "variables": ["u", "v", "elevation", "blh"]}
    file.write_text(tiny_config(data=data).to_json(), encoding="utf-8")
    ended = aqtopo("config", "validate", file)
    assert ended.code == 0
    assert "There is no store at no.zarr, so these variables are not checked: blh." in ended.err


def test_invalid_value_gives_a_message_and_exit_code_2() -> None:
    result = run("validate", DEMO, "--set", "deepspeed.zero_optimization.stage=3", "--set", "model.dept=3")
    assert result.returncode == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    text = " ".join(result.stderr.split())
    assert (
        f"{DEMO} with --set deepspeed.zero_optimization.stage=3: deepspeed.zero_optimization.stage = 3"
        in text
    )
    assert "model.dept = 3: unknown key; did you mean depth?" in text


def test_show_prints_only_json_on_request() -> None:
    result = run("show", DEMO, "--set", "model.depth=2", "--json")
    assert result.returncode == 0, result.stderr
    shown = RunConfig.model_validate(json.loads(result.stdout))
    assert shown == load_config(DEMO, ["model.depth=2"])


def test_show_lists_values_by_the_path_that_sets_them() -> None:
    result = CliRunner().invoke(app, ["show", DEMO], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    for text in ("optimizer.groups.0.lr_multiplier", "deepspeed.zero_optimization.stage", "samples per step"):
        assert text in result.stdout
    assert load_config(DEMO).digest in result.stdout


def test_init_writes_a_valid_configuration_once(aqtopo: Any, tiny_store: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.json"
    command = ("config", "init", "--store", tiny_store, "--out", out)
    assert "Shorten the warm-up" in aqtopo(*command, "--set", "schedule.warmup_steps=20").complaint
    assert not out.exists()
    ended = aqtopo(*command)
    assert ended.code == 0, ended.err
    assert ended.out.startswith(f"{out}: written, checked against {tiny_store}")
    assert f"To train: deepspeed --num_gpus 2 --module aqtopo train {out}\n" in ended.out
    assert aqtopo("config", "validate", out).code == 0
    before = out.read_text(encoding="utf-8")
    assert "exists already" in aqtopo(*command).complaint
    assert out.read_text(encoding="utf-8") == before


def test_schema_prints_the_schema() -> None:
    result = CliRunner().invoke(app, ["schema"])
    assert result.exit_code == 0
    assert result.stdout == schema()


def test_help_and_show_start_without_torch(tmp_path: Path) -> None:
    program = tmp_path / "show.py"
    program.write_text(
        "import sys\n"
        "from aqtopo.cli.config import app\n"
        f"app(['show', {DEMO!r}, '--json'], standalone_mode=False)\n"
        "sys.exit('torch' in sys.modules)\n",
        encoding="utf-8",
    )
    result = run(program=(str(program),))
    assert result.returncode == 0, result.stderr
