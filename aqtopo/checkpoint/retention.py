"""Which saved states are kept, and removing the others so that a crash never leaves half a tag."""

import shutil
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from aqtopo.checkpoint.tags import (
    CHECKPOINTS,
    DISCARDED,
    STATE_FILE,
    UNFINISHED,
    UNIVERSAL,
    list_tags,
    pointed_name,
)
from aqtopo.config import CheckpointConfig
from aqtopo.run_directory.locks import alone, shared


def prune(run_dir: Path, policy: CheckpointConfig) -> None:
    """Keep the last state, those with the lowest validation loss and every so many steps' one.

    A state that cannot be removed is no reason to end a run: that is said, and tried again later.
    """
    tags = list_tags(run_dir)
    validated = [tag for tag in tags if tag.val_loss is not None]
    best = sorted(validated, key=lambda tag: (tag.val_loss or 0.0, tag.step))[: policy.keep_best]
    every = policy.keep_every_steps
    periodic = [tag for tag in tags if every is not None and tag.step % every == 0]
    kept = {tag.name for tag in [*best, *periodic, *tags[-1:]]} | {pointed_name(run_dir)}
    for tag in tags:
        if tag.name not in kept:
            try:
                _discard_unread(tag.folder(run_dir))
            except OSError as error:
                warnings.warn(f"{tag.name} is due to go and cannot be removed: {error}", stacklevel=2)


def sweep(run_dir: Path) -> None:
    """Remove what killed processes left half written or half removed."""
    for suffix in (UNFINISHED, DISCARDED):
        for leftover in (run_dir / CHECKPOINTS).glob(f"*{suffix}"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    for universal in (run_dir / CHECKPOINTS).glob(f"*{UNIVERSAL}"):
        if not universal.with_name(universal.name.removesuffix(UNIVERSAL)).exists():
            shutil.rmtree(universal)


def reading(folder: Path) -> AbstractContextManager[None]:
    """Keep a saved state, of either layout, from being removed while it is read.

    What no run prunes needs no keeping.
    """
    owner = folder.parent.with_name(folder.name) if folder.parent.name == folder.name + UNIVERSAL else folder
    path = owner / STATE_FILE
    return shared(path) if path.is_file() else nullcontext()


def discard(folder: Path) -> None:
    """Remove a folder: first from the list, in one move, then from the disk."""
    discarded = folder.with_name(folder.name + DISCARDED)
    folder.rename(discarded)
    shutil.rmtree(discarded)


def _discard_unread(folder: Path) -> None:
    """Remove a state that nobody reads, and its universal form."""
    with alone(folder / STATE_FILE) as held:
        if held:
            discard(folder)
            shutil.rmtree(folder.with_name(folder.name + UNIVERSAL), ignore_errors=True)
