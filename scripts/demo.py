"""Demo of `make demo`: all stages from simulation to report, with their times.

    python scripts/demo.py ds_configs/demo_cpu.json

It calls the `aqtopo` command and the `deepspeed` launcher, and prints the wall time and peak memory of each.
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
"""Configuration of the fault test, on the store of the demo."""

FAULT_TEST_DIR = "runs/demo_fault_test"
console = Console(highlight=False)


@dataclass(frozen=True)
class Stage:
    """One command of the demo."""

    name: str
    command: list[str]


def stages(config_path: str, config: RunConfig) -> list[Stage]:
    """Return the commands of the demo, in order."""
    rows, columns = config.data.grid
    data, run_dir = config.data, config.training.run_dir
    years = [str(year) for year in (*data.train_years, *data.validation_years, *data.test_years)]
    train_years = [str(year) for year in data.train_years]
    ranks = str(config.training.ranks_per_node)
    synth = ["aqtopo", "synth", data.store, "--grid", f"{rows}x{columns}", "--years", *years]
    # Start with two ranks, resume with one, then with three.
    fault_test = ["aqtopo", "fault-test", FAULT_TEST_CONFIG, "--kills", "2"]
    # Run deepspeed as a module: its script fails in a path with a space.
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
    """Run one command; return its wall time [s] and the peak memory of any process so far [GiB].

    Raises:
        SystemExit: the command failed.
    """
    console.rule(f"[bold]{stage.name}")
    console.print(f"$ {shlex.join(stage.command)}", style="cyan")
    start = time.monotonic()
    code = subprocess.run(stage.command, env=environment, check=False).returncode
    if code:
        raise SystemExit(f"demo: `{shlex.join(stage.command)}` failed with exit code {code}")
    return time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20


def remove_old_demo(config: RunConfig) -> None:
    """Remove the store and the runs of an earlier demo.

    Raises:
        SystemExit: the store holds data that are not simulated.
    """
    store, run_dir = Path(config.data.store), Path(config.training.run_dir)
    if store.exists():
        if not open_store(store).simulated:
            raise SystemExit(
                f"demo: {store} holds data that are not simulated, so it is not replaced. Change data.store."
            )
        shutil.rmtree(store)
    for folder in (run_dir, Path(FAULT_TEST_DIR)):
        if folder.exists():
            shutil.rmtree(folder)


def main(config_path: str) -> None:
    """Run all stages, and print times, peak memory and the paths of the results."""
    config = load_config(config_path)
    remove_old_demo(config)
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    table = Table("stage", "seconds", "peak memory of a process so far [GiB]", title="stages of the demo")
    total = 0.0
    for stage in stages(config_path, config):
        threads = {} if stage.name in ("train", "fault test") else {"OMP_NUM_THREADS": str(os.cpu_count())}
        seconds, memory = run(stage, environment | threads)
        total += seconds
        table.add_row(stage.name, f"{seconds:.0f}", f"{memory:.1f}")
    table.add_row("all", f"{total:.0f}", "")
    console.print(table)
    run_dir = Path(config.training.run_dir)
    for result, name in (("scores", "scores.json"), ("forecast", "forecast.nc"), ("report", "report.html")):
        console.print(f"{result}: {run_dir / name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
