"""Records of a run: `config.json`, its configuration, and `run.json`, the environment of its first start."""

from pathlib import Path

from aqtopo.config import RunConfig, load_config
from aqtopo.config.record import Record, Time, read_record

CONFIG_FILE = "config.json"
RUN_FILE = "run.json"


class RunFile(Record):
    """Contents of `run.json`; unknown values are null."""

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
    folder: str | None = None
    """Working directory of the first start, to which the configuration's relative paths refer."""


def read_run_file(run_dir: Path) -> RunFile:
    """Read the `run.json` of a run directory.

    Raises:
        ValueError: the file is missing or damaged.
    """
    remedy = "`aqtopo train` wrote it when the run began: restore it from a copy of the run directory."
    return read_record(run_dir / RUN_FILE, RunFile, remedy)


def training_path(run_dir: Path, config: RunConfig, path: str) -> Path:
    """Return a path of a run's configuration, a relative one from where the run was trained.

    That is the folder from which `training.run_dir` leads to `run_dir`, so a tree may be moved as a whole;
    else the recorded one; else the current one.
    """
    own, where = Path(config.training.run_dir), run_dir.resolve()
    bases = []
    if not own.is_absolute() and where.parts[-len(own.parts) :] == own.parts:
        bases.append(where.parents[len(own.parts) - 1])
    if (run_dir / RUN_FILE).is_file() and (folder := read_run_file(run_dir).folder):
        bases.append(Path(folder))
    return next((base / path for base in bases if (base / path).exists()), Path(path))


def read_run_config(run_dir: Path) -> RunConfig:
    """Read the configuration that a run was trained with.

    Raises:
        ValueError: `run_dir` is not a run directory.
    """
    if not (run_dir / CONFIG_FILE).is_file():
        raise ValueError(
            f"{run_dir} is not a run directory: it has no {CONFIG_FILE}. "
            "Name the directory that `aqtopo train` wrote (training.run_dir)."
        )
    return load_config(run_dir / CONFIG_FILE)
