"""What `make demo` runs: the commands a newcomer would type, one after another, timed.

    python scripts/demo.py ds_configs/demo_cpu.json

Everything is done by the `aqtopo` command and the `deepspeed` launcher; this file only calls them and says
how long each took and how much memory its largest process had.
"""

import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from aqtopo.config import RunConfig, load_config
from aqtopo.data import open_store

INITIAL_TIME = "2018-01-15T00"
FAULT_TEST_CONFIG = "ds_configs/fault_test_cpu.json"
"""On the demo's own store."""

FAULT_TEST_DIR = "runs/demo_fault_test"
console = Console(highlight=False)


@dataclass(frozen=True)
class Stage:
    """One command of the demo."""

    name: str
    command: list[str]


def stages(config_path: str, config: RunConfig) -> list[Stage]:
    """The demo's commands, in order."""
    rows, columns = config.data.grid
    data, run_dir = config.data, config.training.run_dir
    years = [str(year) for year in (*data.train_years, *data.validation_years, *data.test_years)]
    train_years = [str(year) for year in data.train_years]
    ranks = str(config.training.ranks_per_node)
    synth = ["aqtopo", "synth", data.store, "--grid", f"{rows}x{columns}", "--years", *years]
    # Two ranks, resumed by one, then by three.
    fault_test = ["aqtopo", "fault-test", FAULT_TEST_CONFIG, "--kills", "2"]
    # `deepspeed` as a module: its script does not start from a path with a space.
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner"]
    deepspeed = [*launcher, "--num_gpus", ranks, "--log_level", "warning"]
    return [
        Stage("simulate", [*synth, "--train-years", *train_years]),
        Stage("plan", ["aqtopo", "plan", config_path]),
        Stage("train", [*deepspeed, "--module", "aqtopo", "train", config_path]),
        Stage("evaluate", ["aqtopo", "evaluate", run_dir]),
        Stage("forecast", ["aqtopo", "forecast", run_dir, "--init", INITIAL_TIME, f"{run_dir}/forecast.nc"]),
        Stage("report", ["aqtopo", "report", run_dir]),
        Stage("fault test", [*fault_test, "--worlds", "2,1,3", "--steps", "20", "--out", FAULT_TEST_DIR]),
    ]


def run(stage: Stage, environment: dict[str, str]) -> tuple[float, float]:
    """Run one command; wall seconds, and the most memory any process so far has had [GiB].

    Raises:
        SystemExit: the command failed.
    """
    console.rule(f"[bold]{stage.name}")
    console.print(f"$ {shlex.join(stage.command)}", style="cyan")
    began = time.monotonic()
    code = subprocess.run(stage.command, env=environment, check=False).returncode
    if code:
        raise SystemExit(f"demo: `{shlex.join(stage.command)}` ended with exit code {code}")
    return time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20


def remove_old_demo(config: RunConfig) -> None:
    """Remove the store and the runs of an earlier demo, and nothing else.

    Raises:
        SystemExit: the store is not a simulated one.
    """
    store, run_dir = Path(config.data.store), Path(config.training.run_dir)
    if store.exists():
        if not open_store(store).simulated:
            raise SystemExit(f"demo: {store} holds no simulated data; it is not the demo's to replace")
        shutil.rmtree(store)
    for folder in (run_dir, Path(FAULT_TEST_DIR)):
        if folder.exists():
            shutil.rmtree(folder)


def main(config_path: str) -> None:
    """Run all stages from a clean slate and print what they took and where the results are."""
    config = load_config(config_path)
    remove_old_demo(config)
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    table = Table("stage", "seconds", "peak memory of a process so far [GiB]", title="the demo took")
    total = 0.0
    for stage in stages(config_path, config):
        alone = {} if stage.name in ("train", "fault test") else {"OMP_NUM_THREADS": str(os.cpu_count())}
        seconds, memory = run(stage, environment | alone)
        total += seconds
        table.add_row(stage.name, f"{seconds:.0f}", f"{memory:.1f}")
    table.add_row("all", f"{total:.0f}", "")
    console.print(table)
    run_dir = Path(config.training.run_dir)
    for what, name in (("scores", "scores.json"), ("forecast", "forecast.nc"), ("report", "report.html")):
        console.print(f"{what}: {run_dir / name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
