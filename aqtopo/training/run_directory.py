"""The run directory: claimed once by one configuration, never written over."""

import importlib.metadata
import json
import os
import platform
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import torch

from aqtopo.checkpoint.weights import CONFIG_FILE, read_run_config
from aqtopo.config import RunConfig
from aqtopo.training.distributed import Launch

RUN_FILE = "run.json"
REPORTED_PACKAGES = ("aqtopo", "torch", "deepspeed", "triton", "numpy", "pydantic", "xarray", "zarr")


def check_run_directory(run_dir: Path, config: RunConfig) -> None:
    """Make sure that the run may write there; leaves no trace.

    Raises:
        ValueError: the directory is used, is no directory or cannot be written.
    """
    if (run_dir / CONFIG_FILE).exists():
        same = read_run_config(run_dir).digest == config.digest
        whose = "this very configuration" if same else "another configuration"
        raise ValueError(
            f"the run directory {run_dir} is already used by {whose}, and a run never writes over another. "
            "Choose another with --set training.run_dir=DIR, or move the old run away."
        )
    if run_dir.is_dir() and any(run_dir.iterdir()):
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


def claim_run_directory(run_dir: Path, config: RunConfig, launch: Launch, device: torch.device) -> None:
    """Create the directory and write down what runs in it: the configuration, versions and machine."""
    run_dir.mkdir(parents=True, exist_ok=True)
    facts = {
        "name": config.name,
        "config_digest": config.digest,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "world_size": launch.size,
        "launcher": launch.launcher,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "host_cores": os.cpu_count(),
        "threads_per_rank": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in REPORTED_PACKAGES},
    }
    (run_dir / RUN_FILE).write_text(json.dumps(facts, indent=2) + "\n")
    (run_dir / CONFIG_FILE).write_text(config.to_json() + "\n")


def _version(package: str) -> str | None:
    """The installed version, or None where the package is absent."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
