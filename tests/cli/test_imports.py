"""Modules that a command loads, each in a process of its own: tests in one process load what others need."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SaveUntrained, TinyConfig

TENSORS = {"deepspeed", "lightning", "matplotlib", "torch", "triton"}
DATA = {"pandas", "scipy", "xarray", "zarr"}
TRAINING = {"deepspeed", "lightning", "matplotlib"}
COMPILER = {"sympy", "triton"}

PROGRAM = """
import atexit, sys
from pathlib import Path
from aqtopo.cli.main import main
loaded, sys.argv = sys.argv[1], ["aqtopo", *sys.argv[2:]]
atexit.register(lambda: Path(loaded).write_text("\\n".join(sys.modules)))
main()
"""


@pytest.fixture
def run_dir(tiny_config: TinyConfig, save_untrained: SaveUntrained) -> Path:
    return save_untrained(tiny_config())


def loaded_by(folder: Path, *arguments: object) -> set[str]:
    """Top-level packages that a command has loaded when it ends, after checking that it succeeded."""
    path = folder / "modules.txt"
    command = [sys.executable, "-c", PROGRAM, str(path), *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout
    return {name.partition(".")[0] for name in path.read_text().split()}


@pytest.mark.parametrize("command", ["", "train", "plan", "evaluate", "checkpoint ls", "data info", "synth"])
def test_help_loads_neither_tensors_nor_data(tmp_path: Path, command: str) -> None:
    assert not loaded_by(tmp_path, *command.split(), "--help") & (TENSORS | DATA)


@pytest.mark.parametrize("command", ["config show", "checkpoint ls", "watch --once"])
def test_a_command_on_a_run_s_small_files_loads_neither_tensors_nor_data(
    tmp_path: Path, run_dir: Path, command: str
) -> None:
    place = run_dir / "config.json" if command == "config show" else run_dir
    assert not loaded_by(tmp_path, *command.split(), place) & (TENSORS | DATA)


def test_a_look_into_a_store_loads_no_tensors(tmp_path: Path, tiny_store: Path) -> None:
    assert not loaded_by(tmp_path, "data", "info", tiny_store) & TENSORS


def test_validation_of_a_config_loads_pytorch_without_its_compiler(
    tmp_path: Path, tiny_config: TinyConfig
) -> None:
    config = tmp_path / "config.json"
    config.write_text(tiny_config().to_json())
    loaded = loaded_by(tmp_path, "config", "validate", config)
    assert "torch" in loaded
    assert not loaded & (TRAINING | COMPILER | DATA)


@pytest.mark.parametrize("stored", [True, False])
def test_a_plan_loads_pytorch_alone_and_a_store_s_libraries_if_there_is_one(
    tmp_path: Path, tiny_config: TinyConfig, stored: bool
) -> None:
    settings = json.loads(tiny_config().to_json())
    if not stored:
        settings["data"]["store"] = str(tmp_path / "absent.zarr")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(settings))
    loaded = loaded_by(tmp_path, "plan", config)
    assert "torch" in loaded
    assert not loaded & (TRAINING if stored else TRAINING | DATA)
