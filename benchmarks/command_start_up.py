"""Processor time of interactive commands, from process start to exit.

It is user and system time of the whole process, which depends less on other work on the machine than wall
time. Commands take turns within a round; each must end with exit code 0 and print its result. `checkpoint ls`
and `watch` read a run made here: a log of 1000 steps and the manifest of one saved state.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from aqtopo.checkpoint.tags import Tag, write_tag
from aqtopo.run_directory.log_file import METRICS_FILE
from benchmarks.measure import PUBLISHED_INPUTS, parse_arguments, report
from benchmarks.start_up import CONFIG, make_store

ROUNDS = 5


def make_run(run_dir: Path) -> None:
    """A run directory with a log of 1000 steps and the description of one saved state."""
    tag = Tag(epoch=0, step=1000, step_in_epoch=1000, val_loss=0.5, train_loss=0.5, number=1)
    tag.folder(run_dir).mkdir(parents=True)
    write_tag(tag, run_dir)
    step = {"epoch": 0, "train_loss": 0.5, "lr": {"head": 1e-3}, "samples_per_s": 12.0}
    lines = [{"event": "start", "step": 0, "total_steps": 1000}]
    lines += [{"event": "step", "step": number, **step} for number in range(1, 1001)]
    time = datetime.now(UTC).isoformat()
    text = "".join(json.dumps({"time": time, **line}) + "\n" for line in lines)
    (run_dir / METRICS_FILE).write_text(text, encoding="utf-8")


def commands(folder: Path) -> dict[str, list[str]]:
    """The command lines by name, and two lower bounds: the interpreter, and `import torch` alone."""
    store, run_dir = folder / "store.zarr", folder / "run"
    make_store(store)
    make_run(run_dir)
    config, aqtopo = str(CONFIG), ["-m", "aqtopo"]
    stored = [f"data.store={store}", "data.grid=[8,16]", "data.time_stride_hours=1", "model.regions=[2,2]"]
    stored += ["data.validation_stride_hours=12", *PUBLISHED_INPUTS]
    settings = [part for setting in stored for part in ("--set", setting)]
    return {
        "python": ["-c", "print(1)"],
        "import torch": ["-c", "import torch; print(1)"],
        "--help": [*aqtopo, "--help"],
        "train --help": [*aqtopo, "train", "--help"],
        "config show": [*aqtopo, "config", "show", config],
        "data info": [*aqtopo, "data", "info", str(store)],
        "checkpoint ls": [*aqtopo, "checkpoint", "ls", str(run_dir)],
        "watch --once": [*aqtopo, "watch", "--once", str(run_dir)],
        "config validate": [*aqtopo, "config", "validate", config],
        "plan": [*aqtopo, "plan", config, "--set", f"data.store={folder}/absent.zarr"],
        "plan, with store": [*aqtopo, "plan", config, *settings],
    }


def processor_seconds(arguments_of_python: list[str]) -> float:
    """User and system time of one process.

    Raises:
        RuntimeError: it failed, or printed nothing.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = subprocess.Popen(
            [sys.executable, *arguments_of_python], stdout=out, stderr=err, env=environment
        )
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode or not out.tell():
            err.seek(0)
            raise RuntimeError(f"{arguments_of_python} ended with {child.returncode}: {err.read().decode()}")
    return used.ru_utime + used.ru_stime


def measure(rounds: int) -> list[dict[str, Any]]:
    """Return a row per command; the first round, which fills the caches, is not counted."""
    with tempfile.TemporaryDirectory(prefix="aqtopo-start-") as name:
        lines = commands(Path(name))
        times = [
            {command: processor_seconds(line) for command, line in lines.items()} for _ in range(rounds + 1)
        ]
    return [
        {"command": command, "cpu_s": statistics.median(taken[command] for taken in times[1:])}
        for command in lines
    ]


def main() -> None:
    """Print the figures."""
    options = parse_arguments(__doc__)
    report("command_start_up", measure(1 if options.quick else ROUNDS), options)


if __name__ == "__main__":
    main()
