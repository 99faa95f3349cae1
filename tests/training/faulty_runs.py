"""`aqtopo train CONFIG` for several configurations: faulty_runs.py CONFIG ...

Each runs in a process forked from this one, which has imported everything. Its exit code and all output go to
CONFIG.code and CONFIG.out.

The run of a configuration named `killed` has its loader process killed after its first step; that of
`overflowing` computes in fp16, which is slow on a CPU, and that is all there is against it.
"""

import multiprocessing
import os
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn
from unittest.mock import patch

import deepspeed  # noqa: F401  (imported once, not by every run)
from deepspeed.accelerator import get_accelerator

from aqtopo.cli.main import main
from aqtopo.config import load_config
from aqtopo.training import start  # noqa: F401

LIMIT_S = 240
"""A run that takes longer hangs."""


def kill_loader_process(run_dir: Path) -> None:
    metrics = run_dir / "metrics.jsonl"
    while not (metrics.exists() and '"event": "step"' in metrics.read_text(encoding="utf-8")):
        time.sleep(0.01)
    for process in multiprocessing.active_children():
        process.kill()


def train(config: Path) -> NoReturn:
    with config.with_suffix(".out").open("w", encoding="utf-8") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    if config.stem == "killed":
        run_dir = Path(load_config(config).training.run_dir)
        threading.Thread(target=kill_loader_process, args=(run_dir,), daemon=True).start()
    if config.stem == "overflowing":
        get_accelerator().is_fp16_supported = lambda: True
        patch("aqtopo.training.prepare.check_supported").start()
    sys.argv = ["aqtopo", "train", str(config)]
    code = 0
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    sys.stderr.flush()
    os._exit(code)


def run(config: Path) -> None:
    if not (process := os.fork()):
        train(config)
    over = time.monotonic() + LIMIT_S
    while not (ended := os.waitpid(process, os.WNOHANG))[0] and time.monotonic() < over:
        time.sleep(0.02)
    if not ended[0]:
        os.kill(process, 9)
    config.with_suffix(".code").write_text(
        str(os.waitstatus_to_exitcode(ended[1]) if ended[0] else "hung"), encoding="utf-8"
    )


if __name__ == "__main__":  # loader processes import this file under another name
    for path in sys.argv[1:]:
        run(Path(path))
