"""Claim and lock of a run directory; a claimed directory belongs to one configuration."""

import os
import platform
import tempfile
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path

import torch

from aqtopo.checkpoint.files import write_durably
from aqtopo.checkpoint.manifest import package_versions, source_commit
from aqtopo.checkpoint.tags import UNFINISHED, list_tags, remove_stale, repair_pointer
from aqtopo.checkpoint.weights import CONFIG_FILE, read_run_config
from aqtopo.config import RunConfig
from aqtopo.distributed.deadlines import STACKS
from aqtopo.distributed.launch import Launch
from aqtopo.distributed.rank_group import RankGroup
from aqtopo.run_directory.locks import exclusive_lock_on_all_ranks
from aqtopo.run_directory.log_file import METRICS_FILE
from aqtopo.run_directory.run_file import RUN_FILE, RunFile

LOCK_FILE = ".lock"

LOCK_TIMEOUT_S = 120.0
"""Time that a batch job waits for the lock [s]; its own previous start may still hold it."""


def check_run_directory(run_dir: Path, config: RunConfig, start_over: bool = False) -> None:
    """Check that a fresh run may use a directory; leaves no files.

    `start_over` accepts a directory that the same configuration claimed, if it has no saved state.

    Raises:
        ValueError: the directory is in use, is not a directory or is not writable.
    """
    if (run_dir / CONFIG_FILE).exists():
        same = read_run_config(run_dir).digest == config.digest
        if same and start_over and not list_tags(run_dir):
            return
        whose = "the same configuration" if same else "another configuration"
        raise ValueError(
            f"the run directory {run_dir} is already used by {whose}. Runs are never overwritten. "
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
        # Access bits are meaningless for root and on read-only file systems, so this writes a file.
        with tempfile.TemporaryFile(dir=ancestor):
            pass
    except OSError as error:
        raise ValueError(
            f"the run directory {run_dir} cannot be written ({error.strerror}: {ancestor}). "
            "Choose another with --set training.run_dir=DIR."
        ) from error


def lock_run_directory(
    run_dir: Path, ranks: RankGroup, timeout_s: float = 0.0
) -> AbstractContextManager[None]:
    """Lock a run directory while a run uses it.

    Waits at most `timeout_s` [s] for another run to end, with a message on stderr.

    Raises:
        BusyError: on all ranks: another run uses the directory.
    """
    if ranks.rank == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / LOCK_FILE).touch()
    return exclusive_lock_on_all_ranks(
        run_dir / LOCK_FILE,
        ranks,
        f"another run uses {run_dir}",
        "Wait for its end, stop it, or choose another directory with --set training.run_dir=DIR.",
        timeout_s,
    )


def claim_run_directory(run_dir: Path, config: RunConfig, launch: Launch, device: torch.device) -> None:
    """Write config.json and run.json, which records versions and machine, to a new run directory."""
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
    # Write the configuration first: it is the claim if the process is killed before the second write.
    write_durably(run_dir / CONFIG_FILE, config.to_json() + "\n")
    write_durably(run_dir / RUN_FILE, facts.model_dump_json(indent=2) + "\n")


def reclaim_run_directory(run_dir: Path, config: RunConfig) -> None:
    """Remove unfinished files of killed processes and update config.json."""
    remove_stale(run_dir)
    repair_pointer(run_dir)
    truncate_metrics(run_dir / METRICS_FILE)
    if read_run_config(run_dir).digest != config.digest:
        write_durably(run_dir / CONFIG_FILE, config.to_json() + "\n")


def truncate_metrics(path: Path) -> None:
    """Remove an incomplete last line of a killed process."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        whole = file.read()
        file.truncate(whole.rfind(b"\n") + 1)
