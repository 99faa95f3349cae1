"""`run.json`: environment of a run's first start."""

from pathlib import Path

from aqtopo.config.record import Record, Time, read_record

RUN_FILE = "run.json"


class RunFile(Record):
    """Contents of the file; unknown values are null."""

    started: Time
    """Time of the first start."""
    versions: dict[str, str | None]
    """Versions of the packages that a run depends on; null if not installed."""
    name: str | None = None
    """Name of the run."""
    config_digest: str | None = None
    """Digest of the configuration that created the run directory."""
    world_size: int | None = None
    """Number of processes."""
    launcher: str | None = None
    """Launcher of the processes."""
    device: str | None = None
    """Name of the GPU, or `cpu`."""
    host_cores: int | None = None
    """Number of cores of the first process's host."""
    threads_per_rank: int | None = None
    """Number of threads of a process."""
    platform: str | None = None
    """Operating system and processor."""
    python: str | None = None
    """Python version."""
    commit: str | None = None
    """Git commit of the code, with `-dirty` if files differed; null without a checkout."""


def read_run_file(run_dir: Path) -> RunFile:
    """Read the `run.json` of a run directory.

    Raises:
        ValueError: the file is missing or damaged.
    """
    remedy = "`aqtopo train` wrote it when the run began: restore it from a copy of the run directory."
    return read_record(run_dir / RUN_FILE, RunFile, remedy)
