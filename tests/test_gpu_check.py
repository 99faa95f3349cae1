import json
import os
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from benchmarks import gpu_check
from benchmarks.gpu_check import PARTS, Part, start_part, write

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "gpu_check.sh"
WITH_TORCH = {"torch", "triton", "numpy", "filelock", "fsspec", "jinja2", "markupsafe", "mpmath", "networkx"}
WITH_TORCH |= {"setuptools", "sympy", "pip"}
HIDE = """
import sys
from importlib.machinery import PathFinder

class Visible(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {hidden} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Visible
"""
"""Program of `sitecustomize` that hides packages from every Python process."""


def normal(name: str) -> str:
    return name.lower().replace("_", "-")


def packed() -> set[str]:
    """Distributions that `gpu_check.sh pack` downloads."""
    (listed,) = re.findall(r"needed=\(\n(.*?)\n\)", SCRIPT.read_text(encoding="utf-8"), re.DOTALL)
    names = [name for line in listed.splitlines() if "#" not in line for name in line.split()]
    return {normal(name) for name in names} | {"deepspeed"}


def test_all_packed_wheels_have_a_pin() -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert packed() <= {normal(pin.partition("==")[0]) for pin in pins}


def test_the_kernels_part_needs_only_torch_triton_and_numpy() -> None:
    program = "import sys, benchmarks.elevation_attention, benchmarks.wind_gather; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()} - sys.stdlib_module_names
    owners = {normal(d) for name in loaded for d in packages_distributions().get(name, [])}
    assert owners <= WITH_TORCH | {"typing-extensions", "tqdm", "aqtopo"}  # PyTorch imports tqdm if it can


@pytest.mark.slow
def test_quick_passes_with_the_packed_packages_alone(tmp_path: Path) -> None:
    allowed = packed() | WITH_TORCH | {"aqtopo"}
    owners = packages_distributions()
    hidden = {name for name, dists in owners.items() if not {normal(dist) for dist in dists} & allowed}
    assert {"scipy", "mlflow", "typer"} <= hidden
    (tmp_path / "sitecustomize.py").write_text(HIDE.format(hidden=hidden), encoding="utf-8")
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "AQTOPO_WHEELS": str(tmp_path)}
    command = ["bash", str(SCRIPT), "--quick", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    result = json.loads((tmp_path / "out" / "gpu_check.json").read_text(encoding="utf-8"))
    assert {part["part"]: part["error"] for part in result["parts"]} == dict.fromkeys(PARTS)
    assert done.returncode == 0, done.stderr
    assert all(part["rows"] for part in result["parts"])
    assert (tmp_path / "out" / "gpu_check.md").read_text(encoding="utf-8").startswith("# no GPU (quick)\n")


@pytest.mark.slow
def test_a_part_over_its_limit_is_recorded(tmp_path: Path) -> None:
    result = start_part("train step, fp32", True, 1.0, tmp_path / "log")
    assert not result["passed"]
    assert result["error"] == "exceeded its limit of 1 s"


def test_a_failing_part_is_recorded_with_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libcuda.so is missing')", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    result = start_part("machine", True, 100.0, tmp_path / "log")
    write([result], True, tmp_path)
    table = (tmp_path / "gpu_check.md").read_text(encoding="utf-8")
    assert "| result | FAILED |" in table
    assert "| error | ImportError: libcuda.so is missing |" in table
    assert "libcuda.so is missing" in (tmp_path / "log").read_text(encoding="utf-8")


def test_the_exit_code_is_1_if_a_part_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "PARTS", {"machine": Part(gpu_check.machine, 0.0)})
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--out", str(tmp_path)])
    assert gpu_check.main() == 1
    (part,) = json.loads((tmp_path / "gpu_check.json").read_text(encoding="utf-8"))["parts"]
    assert part["error"] == "no time is left for this part"
