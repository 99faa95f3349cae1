"""Time, memory and opened files of a rank at start-up, by number of ranks.

A tiny run starts on 2, 4, 8 and 16 ranks. They are forked from one process that has imported everything,
because imports take seconds and would hide the rest. The run trains two steps and saves. It is then started
again, resumes and trains a third step. Seconds are from the fork to the end of the start, including the
verified resume. Memory is the private memory of a rank. Files are those that Python opens in the store and in
the run directory.
"""

import gc
import json
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import deepspeed.runtime.zero.muon.original_muon  # noqa: F401  imports Dynamo before the fork
import numpy as np
import torch
import xarray as xr

from aqtopo.config import load_config
from aqtopo.data import write_statistics, write_store
from aqtopo.distributed.launch import Launch
from aqtopo.run_directory.log_file import METRICS_FILE, StartLine, StepLine, of_kind, read_log
from aqtopo.training.prepare import AUTO, ResumeOptions
from aqtopo.training.start import train
from aqtopo.variables import DYNAMIC_VARIABLES, STATIC_CHANNELS, VARIABLES
from benchmarks.measure import PUBLISHED_INPUTS, parse_arguments, report

CONFIG = Path(__file__).parents[1] / "ds_configs" / "fault_test_cpu.json"
GRID = (8, 16)
YEARS = (2016, 2017, 2018)
HOURS = 240
WORLDS = (2, 4, 8, 16)


def make_store(path: Path) -> None:
    """Write a store of ten days of noise in each of three years."""
    starts = [np.datetime64(f"{year}-01-01", "h") for year in YEARS]
    times = np.concatenate([start + np.arange(HOURS).astype("timedelta64[h]") for start in starts])
    constants = [(VARIABLES[name].topoflow_mean, VARIABLES[name].topoflow_std) for name in DYNAMIC_VARIABLES]
    mean, spread = (np.array(column, np.float32)[:, None, None] for column in zip(*constants, strict=True))
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (times.size, len(DYNAMIC_VARIABLES), *GRID))
    lat, lon = np.linspace(20.0, 48.0, GRID[0]), np.linspace(74.0, 134.0, GRID[1])
    flat = np.ones(GRID, np.float32)
    grids = {"elevation": 100.0 * flat, "lat2d": lat[:, None] * flat, "lon2d": lon * flat}
    static = np.stack([grids.get(name, flat) for name in STATIC_CHANNELS]).astype(np.float32)
    dataset = xr.Dataset(
        {
            "fields": (("time", "channel", "lat", "lon"), mean + spread * noise.astype(np.float32)),
            "static": (("static_channel", "lat", "lon"), static),
        },
        coords={
            "time": times.astype("datetime64[ns]"),
            "channel": list(DYNAMIC_VARIABLES),
            "lat": lat,
            "lon": lon,
            "static_channel": list(STATIC_CHANNELS),
        },
        attrs={"source": "noise", "simulated": True},
    )
    write_store(dataset, path)
    write_statistics(path, [YEARS[0]])


def run_rank(folder: Path, rank: int, world: int, port: int, steps: int) -> None:
    """Train up to `steps` steps; write memory and opened files to `<world>-<steps>-<rank>.json`."""
    opened: Counter[str] = Counter()
    shared = {"store": str(folder / "store.zarr"), "run_dir": str(folder / f"run{world}")}

    def count(event: str, details: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(details[0], str | os.PathLike):
            opened.update(name for name, path in shared.items() if str(details[0]).startswith(path))

    sys.addaudithook(count)
    torch.set_num_threads(1)
    overrides = [
        f"data.store={folder}/store.zarr",
        f"training.run_dir={folder}/run{world}",
        f"data.grid=[{GRID[0]},{GRID[1]}]",
        *PUBLISHED_INPUTS,
        "data.time_stride_hours=1",
        "data.validation_stride_hours=12",
        "model.regions=[2,2]",
        "training.validate_every=3",
        f"training.ranks_per_node={world}",
        "deepspeed.train_micro_batch_size_per_gpu=1",
        "deepspeed.zero_optimization.reduce_bucket_size=100000",
    ]
    launch = Launch("torch", rank, rank, world, world, "127.0.0.1", port)
    train(load_config(CONFIG, overrides), launch, steps, ResumeOptions(AUTO))
    own = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    private_kib = sum(int(line.split()[1]) for line in own if line.startswith("Private_"))
    found = {"private_mib": private_kib / 1024, **{f"opened_in_{name}": opened[name] for name in shared}}
    (folder / f"{world}-{steps}-{rank}.json").write_text(json.dumps(found), encoding="utf-8")


def start(folder: Path, world: int, steps: int) -> dict[str, Any]:
    """Fork the ranks and wait for them; return the largest figures of a rank.

    Raises:
        RuntimeError: a rank failed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context, began = multiprocessing.get_context("fork"), time.time()
    children = [
        context.Process(target=run_rank, args=(folder, rank, world, port, steps)) for rank in range(world)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    codes = [child.exitcode for child in children]
    if any(codes):
        raise RuntimeError(f"The {world} ranks ended with exit codes {codes}")
    ranks = [
        json.loads((folder / f"{world}-{steps}-{rank}.json").read_text(encoding="utf-8"))
        for rank in range(world)
    ]
    started = of_kind(read_log(folder / f"run{world}" / METRICS_FILE), StartLine)[-1].time
    return {
        "seconds": np.datetime64(started.removesuffix("+00:00")).astype("datetime64[ms]").astype(int) / 1e3
        - began,
        "private_mib": max(rank["private_mib"] for rank in ranks),
        "store_files": max(rank["opened_in_store"] for rank in ranks),
        "run_files": max(rank["opened_in_run_dir"] for rank in ranks[1:]),
        "run_files_rank_0": ranks[0]["opened_in_run_dir"],
    }


def measure(worlds: tuple[int, ...]) -> list[dict[str, Any]]:
    """Rows of all numbers of ranks."""
    gc.freeze()  # garbage collection in a child would copy the parent's pages
    rows = []
    with tempfile.TemporaryDirectory(prefix="aqtopo-start-") as name:
        folder = Path(name)
        make_store(folder / "store.zarr")
        for world in worlds:
            fresh, resumed = start(folder, world, 2), start(folder, world, 3)
            log = read_log(folder / f"run{world}" / METRICS_FILE)
            steps = [line.step for line in of_kind(log, StepLine)]
            assert steps == [1, 2, 3], steps
            row: dict[str, Any] = {"ranks": world} | {f"fresh_{k}": v for k, v in fresh.items()}
            rows.append(row | {f"resumed_{k}": v for k, v in resumed.items()})
    return rows


def main() -> None:
    """Print the figures."""
    options = parse_arguments(__doc__)
    report("start_up", measure(WORLDS[:2] if options.quick else WORLDS), options)


if __name__ == "__main__":
    main()
