"""Runs functions on many ranks: imports once, then forks, since importing takes longer than what is tested.

    python forked.py JOBS.json

Each job is {"world": W, "file": without .py, "function": in it, "arguments": {...}, "folder": for output}.
Jobs run one after the other; a rank's output goes to `<folder>/rank<r>.log`, its exit code to `codes.json`.
"""

import importlib.util
import json
import os
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import deepspeed.runtime.zero.muon.original_muon  # noqa: F401  before forking: it brings Dynamo
import torch  # noqa: F401


def load_module(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def run_rank(module: Any, job: dict[str, Any], rank: int, port: str) -> int:
    world = str(job["world"])
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    log = os.open(Path(job["folder"]) / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        getattr(module, job["function"])(**job["arguments"])
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except Exception:  # noqa: BLE001  whatever it is, the log must have it
        traceback.print_exc()
        return 70
    return 0


def run_job(module: Any, job: dict[str, Any]) -> None:
    Path(job["folder"]).mkdir(parents=True, exist_ok=True)
    port, children = free_port(), []
    for rank in range(job["world"]):
        child = os.fork()
        if child == 0:
            code = run_rank(module, job, rank, port)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    (Path(job["folder"]) / "codes.json").write_text(json.dumps(codes), encoding="utf-8")


if __name__ == "__main__":
    plan = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    modules = {name: load_module(name) for name in sorted({item["file"] for item in plan})}
    for item in plan:
        run_job(modules[item["file"]], item)
