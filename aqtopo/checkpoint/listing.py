"""List of a run's saved states, read from their manifests without PyTorch."""

from dataclasses import dataclass
from pathlib import Path

from aqtopo.checkpoint.manifest import read_manifest
from aqtopo.checkpoint.tags import (
    CHECKPOINTS,
    DISCARDED,
    STATE_FILE,
    UNIVERSAL,
    read_tag,
    val_loss_in,
)
from aqtopo.refusal import RefusedError
from aqtopo.safe_files import UNFINISHED


@dataclass(frozen=True)
class FolderRow:
    """One folder under `checkpoints`: a complete state, or the remainder of a killed process."""

    name: str
    complete: bool
    note: str
    step: int | None
    val_loss: float | None
    size: int


def list_folders(run_dir: Path) -> list[FolderRow]:
    """Return all folders under `checkpoints`, complete or not, in order of names."""
    folders = sorted(path for path in (run_dir / CHECKPOINTS).glob("*") if path.is_dir())
    return [_folder_row(folder) for folder in folders]


def _folder_row(folder: Path) -> FolderRow:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    notes = {UNFINISHED: "unfinished", DISCARDED: "being removed", UNIVERSAL: "universal form"}
    for suffix, note in notes.items():
        if folder.name.endswith(suffix):
            return FolderRow(folder.name, suffix == UNIVERSAL, note, None, None, size)
    try:
        run = read_manifest(folder).run
        read_tag(folder / STATE_FILE)  # a run ignores folders without it
    except (RefusedError, ValueError, FileNotFoundError) as error:
        return FolderRow(folder.name, False, str(error).splitlines()[0], None, None, size)
    return FolderRow(folder.name, True, "", run.position.step, val_loss_in(folder.name), size)
