"""The run directory: claimed once by one configuration, never written over."""

import os
import platform
import tempfile
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path

import torch

from aqtopo.checkpoint.files import write_durably
from aqtopo.checkpoint.manifest import package_versions, source_commit
from aqtopo.checkpoint.ranks import Ranks
from aqtopo.checkpoint.retention import sweep
from aqtopo.checkpoint.tags import UNFINISHED, list_tags, mend_pointer
from aqtopo.checkpoint.weights import CONFIG_FILE, read_run_config
from aqtopo.config import RunConfig
from aqtopo.distributed.launch import Launch
from aqtopo.distributed.watchdog import STACKS
from aqtopo.run_directory.locks import alone_together
from aqtopo.run_directory.log_file import METRICS_FILE
from aqtopo.run_directory.run_file import RUN_FILE, RunFile

LOCK_FILE = ".lock"

PATIENCE_S = 120.0
"""How long a batch job waits for another run in its directory [s]: most often it is the job's own last start,
of which something is still alive, or whose lock the file system has not given up yet."""


def check_run_directory(run_dir: Path, config: RunConfig, start_over: bool = False) -> None:
    """Make sure that a fresh run may write there; leaves no trace.

    Args:
        run_dir: the run directory.
        config: the run.
        start_over: accept a directory which this very configuration claimed and left before its first save.

    Raises:
        ValueError: the directory is used, is no directory or cannot be written.
    """
    if (run_dir / CONFIG_FILE).exists():
        same = read_run_config(run_dir).digest == config.digest
        if same and start_over and not list_tags(run_dir):
            return
        whose = "this very configuration" if same else "another configuration"
        raise ValueError(
            f"the run directory {run_dir} is already used by {whose}, and a run never writes over another. "
            "Choose another with --set training.run_dir=DIR, or move the old run away."
        )
    names = {path.name for path in run_dir.iterdir()} if run_dir.is_dir() else set()
    if any(not name.endswith(UNFINISHED) for name in names - {LOCK_FILE, STACKS}):
        raise ValueError(
            f"the run directory {run_dir} is not empty and holds no run ({CONFIG_FILE} is missing). "
            "Choose another with --set training.run_dir=DIR."
        )
    ancestor = next(path for path in (run_dir, *run_dir.absolute().parents) if path.exists())
    try:
        # Trying is the only honest test: access bits say nothing to root or about read-only file systems.
        with tempfile.TemporaryFile(dir=ancestor):
            pass
    except OSError as error:
        raise ValueError(
            f"the run directory {run_dir} cannot be written ({error.strerror}: {ancestor}). "
            "Choose another with --set training.run_dir=DIR."
        ) from error


def hold_run_directory(run_dir: Path, ranks: Ranks, patience_s: float = 0.0) -> AbstractContextManager[None]:
    """Keep other runs out of a run directory for as long as this one is at work.

    Args:
        run_dir: the run directory.
        ranks: all of this run's.
        patience_s: how long to wait for another run to end; it is said on stderr.

    Raises:
        BusyError: on all ranks: another run is at work there.
    """
    if ranks.rank == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / LOCK_FILE).touch()
    return alone_together(
        run_dir / LOCK_FILE,
        ranks,
        f"another run is at work in {run_dir}",
        "Wait until it has ended, end it, or choose another directory with --set training.run_dir=DIR.",
        patience_s,
    )


def claim_run_directory(run_dir: Path, config: RunConfig, launch: Launch, device: torch.device) -> None:
    """Create the directory and write down what runs in it: the configuration, versions and machine."""
    facts = RunFile(
        name=config.name,
        config_digest=config.digest,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        world_size=launch.size,
        launcher=launch.launcher,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        host_cores=os.cpu_count(),
        threads_per_rank=torch.get_num_threads(),
        platform=platform.platform(),
        python=platform.python_version(),
        versions=package_versions(),
        commit=source_commit(),
    )
    # The configuration first: it is what makes the directory this run's, should the process be killed here.
    write_durably(run_dir / CONFIG_FILE, config.to_json() + "\n")
    write_durably(run_dir / RUN_FILE, facts.model_dump_json(indent=2) + "\n")


def take_over_run_directory(run_dir: Path, config: RunConfig) -> None:
    """Go on in a directory: clear what killed processes left half done, note what was changed on purpose."""
    sweep(run_dir)
    mend_pointer(run_dir)
    mend_metrics(run_dir / METRICS_FILE)
    if read_run_config(run_dir).digest != config.digest:
        write_durably(run_dir / CONFIG_FILE, config.to_json() + "\n")


def mend_metrics(path: Path) -> None:
    """Drop the last line if a killed process wrote only a part of it."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        whole = file.read()
        file.truncate(whole.rfind(b"\n") + 1)
