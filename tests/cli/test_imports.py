"""Modules that each command loads, in a separate process: in one process, tests load each other's modules."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SaveUntrained, TinyConfig

TENSORS = {"deepspeed", "lightning", "matplotlib", "torch", "triton"}
DATA = {"pandas", "scipy", "xarray", "zarr"}
TRAINING = {"deepspeed", "lightning", "matplotlib"}
COMPILER = {"sympy", "torch._dynamo", "triton"}

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
    """Run a command successfully and return the modules that it has loaded."""
    path = folder / "modules.txt"
    command = [sys.executable, "-c", PROGRAM, str(path), *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout
    return set(path.read_text(encoding="utf-8").split())


@pytest.mark.parametrize("command", ["", "train", "plan", "evaluate", "checkpoint ls", "data info", "synth"])
def test_help_loads_neither_tensors_nor_data(tmp_path: Path, command: str) -> None:
    assert not loaded_by(tmp_path, *command.split(), "--help") & (TENSORS | DATA | {"aqtopo.config"})


@pytest.mark.parametrize("command", ["config show", "checkpoint ls", "watch --once"])
def test_commands_on_small_files_load_neither_tensors_nor_data(
    tmp_path: Path, run_dir: Path, command: str
) -> None:
    place = run_dir / "config.json" if command == "config show" else run_dir
    assert not loaded_by(tmp_path, *command.split(), place) & (TENSORS | DATA)


def test_data_info_loads_no_tensors(tmp_path: Path, tiny_store: Path) -> None:
    assert not loaded_by(tmp_path, "data", "info", tiny_store) & (TENSORS | {"aqtopo.config"})


@pytest.mark.parametrize("command", ["config validate", "plan"])
@pytest.mark.parametrize("stored", [True, False])
def test_planning_loads_pytorch_without_its_compiler_and_zarr_only_for_a_store(
    tmp_path: Path, tiny_config: TinyConfig, stored: bool, command: str
) -> None:
    settings = json.loads(tiny_config().to_json())
    if not stored:
        settings["data"]["store"] = str(tmp_path / "absent.zarr")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(settings), encoding="utf-8")
    loaded = loaded_by(tmp_path, *command.split(), config)
    assert "torch" in loaded
    assert not loaded & (TRAINING | COMPILER | DATA - ({"zarr"} if stored else set()))
