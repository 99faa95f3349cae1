"""Folders with files for users: `ds_configs` and `slurm`, of the wheel or of the checkout."""

from importlib.resources import files
from pathlib import Path


def shipped_folder(name: str) -> Path:
    """Return the path of `ds_configs` or `slurm`; in a checkout they lie beside the package."""
    package = Path(str(files("aqtopo")))
    in_wheel = package / "shipped_files"
    return (in_wheel if in_wheel.is_dir() else package.parent) / name
