"""`run.json`: where and with what a run was first started."""

from pathlib import Path

from aqtopo.config.record import Record, Time, read_record

RUN_FILE = "run.json"


class RunFile(Record):
    """What the file holds; what was not known is null."""

    started: Time
    """When, first."""
    versions: dict[str, str | None]
    """Of the packages that a run depends on; null where one is not installed."""
    name: str | None = None
    """The run's."""
    config_digest: str | None = None
    """Of the configuration that claimed the run directory."""
    world_size: int | None = None
    """Processes."""
    launcher: str | None = None
    """What started them."""
    device: str | None = None
    """The GPU, or `cpu`."""
    host_cores: int | None = None
    """Cores of the first process's host."""
    threads_per_rank: int | None = None
    """Threads of a process."""
    platform: str | None = None
    """Operating system and processor."""
    python: str | None = None
    """Version of Python."""
    commit: str | None = None
    """Of the code, `-dirty` where files differed; null without a checkout."""


def read_run_file(run_dir: Path) -> RunFile:
    """What a run directory's `run.json` holds.

    Raises:
        ValueError: it is missing or damaged.
    """
    remedy = "`aqtopo train` wrote it when the run began: take it from a copy of the run directory."
    return read_record(run_dir / RUN_FILE, RunFile, remedy)
