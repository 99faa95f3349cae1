"""The wheel, installed outside of any checkout with exactly the packages that its metadata require."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.parser import HeaderParser
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
OPTIONAL = {
    "PIL", "contourpy", "matplotlib",  # report
    "deepspeed",  # train
    "mlflow", "wandb",  # monitors
    "rasterio",  # prepare
    "triton",
}  # fmt: skip
"""Packages that are imported only by commands and options that need an extra."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without the network by the build backend of the tests' environment."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w"]
    subprocess.run([*pip, str(folder), str(ROOT)], check=True, capture_output=True)
    (built,) = folder.glob("aqtopo-*.whl")
    return built


def metadata(wheel: Path) -> str:
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return archive.read(name).decode()


def requirements(wheel: Path) -> list[str]:
    return HeaderParser().parsestr(metadata(wheel)).get_all("Requires-Dist") or []


def needed(lines: list[str], extras: tuple[str, ...]) -> Iterator[Requirement]:
    """Yield the requirements that hold here, with some extras."""
    for line in lines:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement


def link_packages(lines: list[str], extras: tuple[str, ...], folder: Path, *linked: Path) -> None:
    """Link the packages of requirements, and theirs in turn, unless one of the folders `linked` has them."""
    folder.mkdir(exist_ok=True)
    for requirement in needed(lines, extras):
        try:
            found = distribution(requirement.name)
        except PackageNotFoundError:
            continue  # such as Triton, which PyTorch's wheels for CPUs do not need
        assert requirement.specifier.contains(found.version, prereleases=True), (
            f"{requirement}: {found.version}"
        )
        entries = {path.parts[0] for path in found.files or [] if path.parts[0] not in ("..", "__pycache__")}
        new = [name for name in entries if not any((each / name).exists() for each in (folder, *linked))]
        for name in new:
            (folder / name).symlink_to(Path(str(found.locate_file(name))).resolve())
        if new:
            link_packages(found.requires or [], tuple(requirement.extras), folder, *linked)


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel."""

    python: Path
    folder: Path
    extras: Path
    """Packages of the extra `train`, which are importable on request."""

    def run(self, *command: object, extras: bool = False) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment in a folder that is no checkout."""
        kept = {"LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HOME": str(self.folder)}
        kept["PATH"] = f"{self.python.parent}:{os.defpath}"
        kept |= {"PYTHONPATH": str(self.extras)} if extras else {}
        program, *words = map(str, command)
        path = str(self.python.parent / program)
        return subprocess.run([path, *words], cwd=self.folder, env=kept, capture_output=True, text=True)

    def output(self, *command: object, extras: bool = False) -> str:
        """Run a command that must succeed, and return its output."""
        ended = self.run(*command, extras=extras)
        assert ended.returncode == 0, f"{command}\n{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}"
        return ended.stdout


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    base = tmp_path_factory.mktemp("installed")
    environment, python = base / "env", base / "env" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    link_packages(requirements(wheel), (), base / "required")
    link_packages(requirements(wheel), ("train",), base / "extras", base / "required")
    (site_packages,) = environment.glob("lib/python*/site-packages")
    (site_packages / "required.pth").write_text(f"{base / 'required'}\n", encoding="utf-8")
    (base / "work").mkdir()
    return Installed(python, base / "work", base / "extras")


def test_packages_come_from_the_wheel_and_deepspeed_is_an_extra(installed: Installed) -> None:
    program = "import aqtopo, aqtopo_kernels as k, sys; print(aqtopo.__file__, k.__file__, sep='\\n')"
    for path in installed.output("python", "-c", program).split():
        assert Path(path).is_relative_to(installed.python.parents[1])
    assert installed.run("python", "-c", "import deepspeed").returncode == 1
    assert "aqtopo 0." in installed.output("aqtopo", "--version")


def test_every_import_is_of_a_required_or_an_optional_package(installed: Installed) -> None:
    own = {"aqtopo", "aqtopo_kernels", *sys.stdlib_module_names}
    absent = set()
    for path in [*(ROOT / "aqtopo").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            absent |= {name.split(".")[0] for name in names} - own
    required = {path.name.removesuffix(".py") for path in (installed.extras.parent / "required").iterdir()}
    assert absent - required == OPTIONAL


def test_from_a_store_to_scores_forecast_and_batch_scripts(installed: Installed) -> None:
    aqtopo: Callable[..., str] = lambda *words, **more: installed.output("aqtopo", *words, **more)  # noqa: E731
    years = ["--years", "2016", "2017", "2018"]
    aqtopo("synth", "store.zarr", "--grid", "16x24", *years)
    stride = ("--set", "data.test_stride_hours=997", "--set", "data.validation_stride_hours=997")
    written = aqtopo(
        "config", "init", "--store", "store.zarr", "--like", "small", "--out", "first.json", *stride
    )
    assert "To train: aqtopo train first.json" in written
    aqtopo("config", "validate", "first.json")

    refused = installed.run("aqtopo", "train", "first.json")
    assert refused.returncode == 2
    assert "aqtopo[train]" in refused.stderr
    assert not (installed.folder / "runs").exists()
    aqtopo("train", "first.json", "--stop-after", "2", extras=True)

    aqtopo("evaluate", "runs/first", "--tag", "last")
    aqtopo("forecast", "runs/first", "--tag", "last", "--init", "2018-01-15T00", "maps.nc")
    aqtopo("export", "runs/first", "model", "--tag", "last")
    assert (installed.folder / "runs/first/scores.json").is_file()
    assert (installed.folder / "maps.nc").is_file()
    aqtopo("slurm", "init", "--site", "generic_nvidia")
    assert (installed.folder / "slurm/job.sh").is_file()


def test_the_readme_on_pypi_has_only_absolute_links(wheel: Path) -> None:
    head, _, readme = metadata(wheel).partition("\n\n")
    (address,) = re.findall(r"^Project-URL: Repository, (\S+)$", head, re.MULTILINE)
    links = re.findall(r"\]\(([^)]+)\)", readme)
    assert links
    for link in links:
        assert link.startswith(("https://", "#"))
    assert f"{address}/raw/main/docs/forecast.png" in links
    assert f"{address}/blob/main/docs/data.md" in links
